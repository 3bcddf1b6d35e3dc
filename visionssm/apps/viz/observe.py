"""What a model does with an image, as numbers: scans, activations, receptive fields, evidence for a class."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from visionssm.extras import MissingExtraError, check_extra
from visionssm.layers.mamba import MambaDirection
from visionssm.models.isotropic import Isotropic
from visionssm.ops import selective_scan
from visionssm.ops.inputs import ScanInputs

_CHANNELS = 64  # that stand for all in the implicit attention, evenly spaced
_LEAST_TOKENS = 4  # of a scan that is worth a picture
_SKEW = 0.1  # by which a map's aspect may differ from the image's


@dataclass(frozen=True)
class ScanView:
    """One scan of one image.

    Attributes:
        layer: Name of the module that scanned.
        inputs: What the operator got, of a batch of one.
        tokens: Where the patches stand in the sequence, (H, W).
    """

    layer: str
    inputs: ScanInputs
    tokens: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(self.tokens.shape)

    @property
    def directions(self) -> int:
        """How many walks there are."""
        return self.inputs.delta.shape[2]

    def walk(self, direction: int) -> np.ndarray:
        """Row-major patches in visiting order; tokens that are no patches are left out."""
        order, _ = self._orders(direction)
        place = torch.full((self.inputs.delta.shape[1],), -1)
        place[self.tokens.flatten()] = torch.arange(self.tokens.numel())
        visited = place[order]
        return visited[visited >= 0].numpy()

    def steps(self) -> Tensor:
        """The step sizes dt at every patch, averaged over channels, (K, H, W)."""
        return self._maps(lambda dt, A: dt.mean(-1))

    def decays(self) -> Tensor:
        """What a state keeps at every patch, exp(dt A), averaged over channels and states, from 0 to 1, (K, H, W)."""
        return self._maps(lambda dt, A: torch.exp(dt.unsqueeze(-1) * A).mean((-1, -2)))

    def outputs(self) -> Tensor:
        """The root mean square of what every direction puts out at a patch, before any gate, (K, H, W)."""
        inputs = self.inputs
        with torch.no_grad():
            out = selective_scan(
                *inputs[:6],
                delta_bias=inputs.delta_bias,
                delta_softplus=inputs.delta_softplus,
                order=inputs.order,
                param_order=inputs.param_order,
                merge=False,
                local_window=inputs.local_window or None,
            )
        return self._on_grid(out[0].float().square().mean(-1).sqrt().T)

    def attention(self, token: int) -> Tensor:
        """How much the patch `token`, row-major, reads of every patch, (K, H, W).

        The scan is linear in its tokens: y[t] = sum over s of w[t, s] u[s], with
        w[t, s] = sum over states of C[t] exp(A (dt[s+1] + ... + dt[t])) dt[s] B[s], and likewise from the right inside
        a local window. This is the mean of |w| over channels, at most 64 of them, evenly spaced (arXiv:2403.01590).
        """
        at = int(self.tokens.flatten()[token])
        read = torch.zeros(self.directions, self.inputs.delta.shape[1])
        for k in range(self.directions):
            order, _ = self._orders(k)
            for t in (order == at).nonzero().flatten().tolist():
                read[k].index_add_(0, order, self._weights(k, t))
        return self._on_grid(read)

    def _weights(self, k: int, t: int) -> Tensor:
        dt, total, A, B, C = self._walked[k]
        passed = (total[t] - total[: t + 1]).unsqueeze(-1)  # [t + 1, channels, 1]
        weights = torch.einsum('sdn,sn,n,sd->sd', torch.exp(passed * A), B[: t + 1], C[t], dt[: t + 1])
        window = self.inputs.local_window
        if window:
            end = min((t // window + 1) * window, len(dt))
            ahead = (total[t:end] - dt[t:end] - total[t] + dt[t]).unsqueeze(-1)[1:]
            behind = torch.einsum('sdn,sn,n,sd->sd', torch.exp(ahead * A), B[t + 1 : end], C[t], dt[t + 1 : end])
            weights = torch.cat((weights, behind))
        return F.pad(weights.abs().mean(-1), (0, len(dt) - len(weights)))

    @cached_property
    def _walked(self) -> list[tuple[Tensor, ...]]:
        """Per direction, in visiting order and for some channels: dt, its sum so far, A, B and C."""
        channels, found = self.inputs.u.shape[-1], []
        some = torch.arange(0, channels, -(-channels // _CHANNELS))
        for k in range(self.directions):
            _, params = self._orders(k)
            dt = self._dt(k, params)[:, some]
            B, C = (x[0, params, k].float() for x in (self.inputs.B, self.inputs.C))
            found.append((dt, dt.cumsum(0), self.inputs.A[k, some].float(), B, C))
        return found

    def _orders(self, k: int) -> tuple[Tensor, Tensor]:
        inputs = self.inputs
        order = torch.arange(inputs.delta.shape[1]) if inputs.order is None else inputs.order[k].long()
        return order, order if inputs.param_order is None else inputs.param_order[k].long()

    def _dt(self, k: int, params: Tensor) -> Tensor:
        raw = self.inputs.delta[0, params, k].float()
        if self.inputs.delta_bias is not None:
            raw = raw + self.inputs.delta_bias[k].float()
        return F.softplus(raw) if self.inputs.delta_softplus else raw

    def _maps(self, of) -> Tensor:
        values = torch.zeros(self.directions, self.inputs.delta.shape[1])
        for k in range(self.directions):
            order, params = self._orders(k)
            values[k, order] = of(self._dt(k, params), self.inputs.A[k].float())
        return self._on_grid(values)

    def _on_grid(self, values: Tensor) -> Tensor:
        return values[:, self.tokens]


@dataclass(frozen=True)
class LayerView:
    """All directions of one layer, whether it walked them in one scan or in several.

    Attributes:
        name: Of the layer.
        scans: On the same grid.
    """

    name: str
    scans: tuple[ScanView, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.scans[0].grid

    def walks(self) -> list[np.ndarray]:
        """Row-major patches in visiting order, one array per direction."""
        return [scan.walk(k) for scan in self.scans for k in range(scan.directions)]

    def maps(self, what: str, *args: int) -> Tensor:
        """`steps`, `decays`, `outputs` or `attention` of all directions, (K, H, W)."""
        return torch.cat([getattr(scan, what)(*args) for scan in self.scans])


def observe_layers(model: nn.Module, image: Tensor, most: int | None = None) -> list[LayerView]:
    """The layers that scan the map, or a coarser one, while `model` sees an image.

    Args:
        model: Of this package, in evaluation mode, on the CPU.
        image: As the model takes it, (1, C, H, W).
        most: Keep no more layers than that, evenly spaced in depth; None: all.

    Returns:
        From the first to the last; scans in windows, of a single token, or over several maps at once are left out.
    """
    layers: dict[tuple, list[ScanView]] = {}
    with _recorded(model) as calls, torch.no_grad():
        features = model.forward_features(image)
    for name, inputs, walked in calls:
        length = inputs.delta.shape[1] if walked is None else features.shape[1]
        tokens = _grid(model, length, image.shape[-2:], features.shape[1])
        if tokens is not None and walked is not None:  # the sequence is a walk: where each patch comes in it
            step_of = torch.zeros(int(max(walked.max(), tokens.max())) + 1, dtype=torch.long)
            step_of[walked.flip(0)] = torch.arange(len(walked)).flip(0)
            tokens = step_of[tokens]
        if len(inputs.u) == 1 and tokens is not None:
            scan = ScanView(name, inputs, tokens)
            layers.setdefault((re.sub(r'\.(directions|groups)\.\d+.*|\.ssm$', '', name), scan.grid), []).append(scan)
    found = [LayerView(name, tuple(scans)) for (name, _), scans in layers.items()]
    if most is not None and len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    return found


def _grid(model: nn.Module, length: int, size: tuple[int, int], stream: int) -> Tensor | None:
    """Where patches stand among `length` tokens, behind which there may be one of zeros; None if nowhere."""
    if length < _LEAST_TOKENS:
        return None
    if isinstance(model, Isotropic):
        height, width = model.patch_embed.dynamic_feat_size(size)
        stream = max(stream, height * width)
        return model.token_grid(stream, height, width) if length in (stream, stream + 1) else None
    for count in (length, length - 1):
        height = round(math.sqrt(count * size[0] / size[1]))
        if height and count % height == 0 and abs(math.log(height**2 / count * size[1] / size[0])) < _SKEW:
            return torch.arange(count).unflatten(0, (height, count // height))
    return None


class _Recorder(TorchDispatchMode):
    def __init__(self, record) -> None:
        super().__init__()
        self._record = record

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.visionssm.selective_scan.default:
            # values: a parameter that is handed on as it is would make gradients of the pictures
            self._record(ScanInputs(*(x.detach() if isinstance(x, Tensor) else x for x in args[:-1])))
        return func(*args, **(kwargs or {}))


@contextmanager
def _recorded(model: nn.Module) -> Iterator[list[tuple[str, ScanInputs, Tensor | None]]]:
    """The scans of what runs inside: the innermost module that ran, what the operator got, and the walk.

    The walk is that of tokens that the module itself put in visiting order, else None.
    """
    calls: list[tuple[str, ScanInputs, Tensor | None]] = []
    running: list[tuple[str, Tensor | None]] = [('', None)]

    def start(name: str, module: nn.Module, args: tuple) -> None:
        own = isinstance(module, MambaDirection) and not args[3]
        running.append((name, args[2][0].long() if own else None))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(partial(start, name))
            after = module.register_forward_hook(lambda *_: None if running.pop() else None, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(_Recorder(lambda inputs: calls.append((running[-1][0], inputs, running[-1][1]))))
        yield calls


def activations(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The root mean square over channels of the map behind every stage or block, (H, W) each."""
    with torch.no_grad():
        maps = model.forward_intermediates(image, intermediates_only=True)
    return [x[0].float().square().mean(0).sqrt() for x in maps]


def receptive_field(model: nn.Module, images: Iterable[Tensor]) -> Tensor:
    """What the middle of the last map depends on, (H, W), averaged over images; its largest value is 1.

    The sum of the positive features there is differentiated with respect to the pixels; absolute values are summed
    over colours (arXiv:1701.04128, and arXiv:2203.06717, section 3.5, for the average).

    Args:
        model: In evaluation mode.
        images: (1, C, H, W) each, of one size.

    Raises:
        ValueError: If there is no image.
    """
    total, count = None, 0
    for image in images:
        image = image.detach().clone().requires_grad_()
        last = model.forward_intermediates(image, indices=1, intermediates_only=True)[-1]
        middle = last[..., last.shape[-2] // 2, last.shape[-1] // 2].relu().sum()
        grad = torch.autograd.grad(middle, image)[0][0].abs().sum(0)
        total, count = grad if total is None else total + grad, count + 1
    if total is None:
        raise ValueError('no images: a receptive field is averaged over at least one')
    return total / max(total.max().item(), 1e-30)


def class_evidence(model: nn.Module, image: Tensor, index: int | None = None) -> Tensor:
    """Where the evidence for a class is, (H, W) in [0, 1] on the image: Grad-CAM by `pytorch-grad-cam`.

    It reads the last map; in models that classify a token of their own, the stream before the last block, which is
    the last place where the class depends on patches.

    Args:
        model: In evaluation mode.
        image: As the model takes it, (1, C, H, W).
        index: The class; None: the most probable one.

    Raises:
        MissingExtraError: If `pytorch-grad-cam` is not installed or can't be imported.
        ValueError: If the model has no classifier.
    """
    check_extra('class evidence', 'viz', 'pytorch_grad_cam')
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:  # opencv-python lacks libGL on small machines
        raise MissingExtraError(f'pytorch_grad_cam cannot be imported: {error}') from error
    if not getattr(model, 'num_classes', 0):
        raise ValueError('the model has no classifier: there is no class to find evidence for')
    if isinstance(model, Isotropic):
        layers = [model.blocks[-2 if len(model.blocks) > 1 else -1]]
        height, width = model.patch_embed.dynamic_feat_size(image.shape[-2:])

        def to_maps(x: Tensor) -> Tensor:
            x = x if isinstance(x, Tensor) else x[0]
            if x.ndim == 3:
                x = x[:, model.token_grid(x.shape[1], height, width)]
            return x.permute(0, 3, 1, 2)
    else:
        layers = [model.get_submodule(model.feature_info[-1]['module'])]

        def to_maps(x: Tensor) -> Tensor:
            return x.permute(0, 3, 1, 2) if getattr(model, 'output_fmt', 'NCHW') == 'NHWC' else x

    targets = None if index is None else [ClassifierOutputTarget(index)]
    with GradCAM(model, layers, reshape_transform=to_maps) as cam:
        return torch.from_numpy(cam(image, targets)[0])
