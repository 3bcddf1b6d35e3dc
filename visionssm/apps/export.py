"""Models as files for other runtimes: written, run again, compared with the model, and only then given their name."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from timm.layers import set_exportable
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from visionssm.extras import check_extra
from visionssm.files import added_files, check_writable
from visionssm.ops.plain import plain_program

TOLERANCE = 1e-4  # of the standard deviation of the model's outputs
OPERATORS = ('plain', 'core', 'ours')
_Run = Callable[[Tensor], Tensor]


class Format(NamedTuple):
    """How a file is called and made, and what it needs.

    Attributes:
        suffixes: What its name may end in.
        packages: That have to be installed.
        write: Takes model, example, dynamic axes, file, ONNX opset and operators.
        read: Takes the file, gives the program in it.
    """

    suffixes: tuple[str, ...]
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, dict[int, str], Path, int | None, str], None]
    read: Callable[[Path], _Run]


class Check(NamedTuple):
    """How far an exported program is from its model on images of one shape.

    Attributes:
        shape: Of the images, (B, C, H, W).
        error: The largest difference of the outputs over their standard deviation.
    """

    shape: tuple[int, ...]
    error: float


def check_request(
    form: str, file: str | os.PathLike[str], opset: int | None = None, operators: str | None = None
) -> Format:
    """Reject what cannot be exported before any work begins.

    Raises:
        ValueError: If the format, the file's name or folder, or an option that the format has not, is not allowed.
        MissingExtraError: If the format needs a package that is not installed.
    """
    if form not in FORMATS:
        raise ValueError(f'format is {form!r}; allowed are {", ".join(FORMATS)}')
    found, file = FORMATS[form], Path(file)
    if not file.name.endswith(found.suffixes):
        raise ValueError(f'{file} is not a name for {form}; it must end in {" or ".join(found.suffixes)}')
    check_writable(file)
    if opset is not None and form not in ('onnx', 'openvino'):
        raise ValueError(f'opset goes with onnx and openvino, not with {form}')
    if operators is not None and operators not in OPERATORS:
        raise ValueError(f'operators are {operators!r}; allowed are {", ".join(OPERATORS)}')
    if operators is not None and form not in ('exported-program', 'aoti'):
        raise ValueError(f'operators can be chosen for exported-program and aoti, not for {form}')
    check_extra(f'{form} export', 'export', *found.packages)
    return found


def export_model(
    model: nn.Module,
    file: str | os.PathLike[str],
    form: str,
    input_size: tuple[int, int, int],
    batch: int = 2,
    dynamic_size: bool = False,
    opset: int | None = None,
    operators: str | None = None,
) -> list[Check]:
    """Write a model for another runtime, if what was written gives the model's outputs.

    Args:
        model: On the CPU; its outputs are one tensor. It is put into evaluation mode.
        file: Where to; what is there is replaced.
        form: onnx, exported-program, aoti, torchscript or openvino.
        input_size: Channels, height and width of the images.
        batch: Images of the example that is traced, from 2; the program takes any number of them.
        dynamic_size: Whether it takes images of any size, too.
        opset: Of ONNX; None: the exporter's own.
        operators: For exported-program and aoti: 'plain', torch's alone (None); 'core', core ATen alone; 'ours', with
            `visionssm::selective_scan`, which is faster and needs `import visionssm` before it is loaded.

    Returns:
        The differences found, each at most `TOLERANCE`.

    Raises:
        ValueError: If the exporter can't take the model, or the file disagrees with it; nothing is written then.
        MissingExtraError: If the format needs a package that is not installed.
    """
    found, file = check_request(form, file, opset, operators), Path(file)
    if batch < 2:
        raise ValueError(f'batch is {batch}; allowed are integers from 2: exporters take 1 for a constant')
    model = model.eval().requires_grad_(False)
    channels, height, width = input_size
    sizes = [(height, width)]
    if dynamic_size:
        sizes.append((height + 32, width))
    axes = {0: 'batch'} | ({2: 'height', 3: 'width'} if dynamic_size else {})
    generator = torch.Generator().manual_seed(0)
    with added_files(file.parent) as work:
        with _exporting(form):
            found.write(
                model,
                torch.randn(batch, *input_size, generator=generator),
                axes,
                work / file.name,
                opset,
                operators or 'plain',
            )
        run, checks = None, []
        for size in sizes:
            images = torch.randn(2, channels, *size, generator=generator)
            with torch.no_grad():
                expected = model(images)
                try:
                    run = run or found.read(work / file.name)
                    out = run(images)
                except Exception as error:  # the runtime's own, often in many lines
                    line = str(error).strip().splitlines()[-1]
                    raise ValueError(f'the {form} program cannot be run: {line}; nothing was written') from error
            error = (out - expected).abs().max() / expected.std()
            checks.append(Check(tuple(images.shape), error.item()))
            if not error <= TOLERANCE:
                raise ValueError(
                    f'the {form} program is off by {error:.1e} standard deviations on images {tuple(images.shape)}; '
                    f'allowed is {TOLERANCE:.0e}: nothing was written'
                )
    return checks


@contextlib.contextmanager
def _exporting(form: str) -> Iterator[None]:
    """Keep exporters quiet, and say in one line what they raise."""
    set_exportable(True)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:
        line = str(error).strip().splitlines() or ['no message']
        raise ValueError(
            f'the exporter for {form} cannot take this model: {type(error).__name__}, {line[0]}'
        ) from error
    finally:
        logging.disable(disabled)
        set_exportable(False)


def _program(model: nn.Module, example: Tensor, axes: dict[int, str], operators: str) -> ExportedProgram:
    shapes = {axis: Dim(name) if axis == 0 else Dim.AUTO for axis, name in axes.items()}
    program = torch.export.export(model, (example,), dynamic_shapes=(shapes,))
    return program if operators == 'ours' else plain_program(program, core=operators == 'core')


def _write_program(model, example, axes, file, opset, operators) -> None:
    torch.export.save(_program(model, example, axes, operators), file)


def _write_aoti(model, example, axes, file, opset, operators) -> None:
    program = _program(model, example, axes, operators)
    torch._inductor.aoti_compile_and_package(program, package_path=str(file))


def _write_torchscript(model, example, axes, file, opset, operators) -> None:
    torch.jit.script(model).save(str(file))


def _write_onnx(model, example, axes, file, opset, operators) -> None:
    torch.onnx.export(
        model, example, file, dynamo=False, opset_version=opset, input_names=['images'], output_names=['logits'],
        dynamic_axes={'images': axes, 'logits': {0: 'batch'}},
    )  # fmt: skip


def _write_openvino(model, example, axes, file, opset, operators) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as work:
        onnx = Path(work) / 'model.onnx'
        _write_onnx(model, example, axes, onnx, opset, operators)
        converted = openvino.convert_model(onnx)
    openvino.save_model(converted, file, compress_to_fp16=False)


def _read_program(file: Path) -> _Run:
    return torch.export.load(file).module()


def _read_aoti(file: Path) -> _Run:
    return torch._inductor.aoti_load_package(str(file))


def _read_torchscript(file: Path) -> _Run:
    return torch.jit.load(str(file))


def _read_onnx(file: Path) -> _Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    name = session.get_inputs()[0].name
    return lambda images: torch.from_numpy(session.run(None, {name: images.numpy()})[0])


def _read_openvino(file: Path) -> _Run:
    import openvino

    # on CPUs with bf16 the plugin computes in it unless told otherwise
    compiled = openvino.Core().compile_model(file, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0])


FORMATS = {
    'onnx': Format(('.onnx',), ('onnx', 'onnxruntime'), _write_onnx, _read_onnx),
    'exported-program': Format(('.pt2',), (), _write_program, _read_program),
    'aoti': Format(('.pt2',), (), _write_aoti, _read_aoti),
    'torchscript': Format(('.pt', '.ts'), (), _write_torchscript, _read_torchscript),
    'openvino': Format(('.xml',), ('onnx', 'openvino'), _write_openvino, _read_openvino),
}
