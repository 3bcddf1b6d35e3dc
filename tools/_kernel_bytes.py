"""Bytes moved and instructions issued per (b, d, l) of one scan block, next to the three-kernel form. No GPU needed.

`model_bytes_table` is what `tools/benchmark.py kernels --model-bytes` prints. Bytes are what has to pass through DRAM
if every tensor is read or written once per kernel that needs it and what is used again at once stays in cache (so do
the states that the backward pass recomputes: 8 N K bytes per (b, d, l) through L2 for N > 2). Instructions are counted
in the loops of the compiled code for one target: the lanes' instructions of all K directions, divided by the channels
and steps that they serve. Neither is a measurement of time.

The three-kernel form (VMamba's): copy u into K visiting orders; scan them, output in fp32; merge the K outputs. Its
backward pass copies the fp32 gradient K times, scans back from saved copies, and merges the gradients of the copies.
Its instructions are not counted, as its scan is another project's code.
"""

from __future__ import annotations

import re

import triton
from _kernel_variants import (
    DTYPES,
    PROBLEMS,
    TARGETS,
    Launch,
    Problem,
    compile_launch,
    launches,
    require_compiler,
    sass,
)
from visionssm_kernels import selective_scan as scan

SHOWN = ('vmamba', 'vmamba_vanilla', 'vmamba_m2', 'vim')
_INSTRUCTION = re.compile(r'/\*[0-9a-f]{4,}\*/\s+(.*?);')
_LABEL = re.compile(r'^(\.L_x_\d+):')
_BRANCH = re.compile(r'BRA.*`\((\.L_x_\d+)\)')


def loops(text: str) -> list[tuple[int, int]]:
    """First and last instruction of every loop of a disassembly, outer loops after the loops inside them."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if label := _LABEL.match(line.strip()):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            instructions.append(found[1])
    spans = []
    for i, instruction in enumerate(instructions):
        branch = _BRANCH.search(instruction)
        if branch and labels.get(branch[1], i) < i:
            spans.append((labels[branch[1]], i))
    return spans


def instructions_per_step(launch: Launch, spans: list[tuple[int, int]]) -> float:
    """Warp instructions that one step of one program takes."""
    sizes = {span: span[1] - span[0] + 1 for span in spans}
    outer = max(spans, key=lambda span: sizes[span])
    if launch.kernel != 'selective_scan_bwd_kernel':
        return sizes[outer]
    # segments around [recompute, by group and perhaps by step] and [adjoint, by group]
    unroll, segment = launch.constants['UNROLL'], launch.segment
    groups = -(-segment // unroll)
    inside = [span for span in spans if outer[0] <= span[0] and span[1] <= outer[1] and span != outer]
    top = [span for span in inside if not any(o != span and o[0] <= span[0] and span[1] <= o[1] for o in inside)]
    adjoint = max(top, key=lambda span: sizes[span])
    per_step = sizes[adjoint] / unroll + (sizes[outer] - sum(sizes[span] for span in top)) / segment
    for span in top:
        if span != adjoint:
            steps = [s for s in inside if s != span and span[0] <= s[0] and s[1] <= span[1]]
            inner = max((sizes[s] for s in steps), default=0)
            per_group = sizes[span] - inner + inner * unroll
            per_step += per_group * (groups - 1) / segment
    return per_step


def counted_instructions(problem: Problem, dtype: str, target: str, backward: bool) -> float:
    """Lane instructions per (b, d, l) of all scan kernels of a pass."""
    total = 0.0
    for launch in launches(problem, DTYPES[dtype], backward):
        if launch.kernel in ('selective_scan_fwd_kernel', 'selective_scan_state_kernel', 'selective_scan_bwd_kernel'):
            steps = instructions_per_step(launch, loops(sass(compile_launch(launch, TARGETS[target]))))
            lanes = 32 * launch.options['num_warps']
            total += problem.directions * steps * lanes / launch.constants['BLOCK_D']
    return total


def moved_bytes(problem: Problem, size: int, backward: bool) -> float:
    """Bytes per (b, d, l) of our kernels with tokens of `size` bytes."""
    directions, channels, d_state = problem.directions, problem.channels, problem.d_state
    u = size if problem.shared_u else directions * size
    delta = directions * size
    one = directions * d_state * size / channels  # B or C
    gate = size if problem.gate else 0
    # zeroed, accumulated, read back, cast; in fp32 the buffer is the result
    summed = 4 + 4 + (4 + size if size < 4 else 0)
    merged = summed if directions > 1 else size
    if not backward:
        return u + delta + 2 * one + gate + merged
    plan = scan.choose_plan(
        problem.batch, directions, channels, d_state, problem.length, window=problem.window, backward=True
    )
    states = 4 * directions * d_state / plan.segment
    first = u + delta + one + states
    second = u + delta + 2 * one + size + gate + states
    grad_u = merged if problem.shared_u else u
    grad_bc = 2 * directions * d_state * (summed if channels > plan.block_d else size) / channels
    return first + second + grad_u + delta + grad_bc + (merged if problem.gate else 0)


def three_kernel_bytes(problem: Problem, size: int, backward: bool) -> float:
    """Bytes per (b, d, l) of copy, scan, merge."""
    directions, channels, d_state = problem.directions, problem.channels, problem.d_state
    copies = directions * size
    source = size if problem.shared_u else copies
    one = directions * d_state * size / channels
    gate = size if problem.gate else 0
    if not backward:
        return (source + copies) + (copies + copies + 2 * one + 4 * directions) + (4 * directions + gate + 4)
    grad_copies = 4 + gate + 4 * directions
    grad_scan = (
        4 * directions + copies + copies + 2 * one + copies + copies + 2 * 2 * 4 * directions * d_state / channels
    )
    return grad_copies + grad_scan + copies + source + (gate + 4 if problem.gate else 0)


def model_bytes_table(target: str = 'sm_90') -> str:
    """The table as Markdown.

    Args:
        target: The NVIDIA target whose instructions are counted: sm_80, sm_90, sm_100 or sm_120.

    Raises:
        RuntimeError: If this process interprets kernels instead of compiling them.
    """
    require_compiler()
    lines = [
        f'Per (b, d, l), all K directions together; instructions of {target}, Triton {triton.__version__}. '
        'Counted, not measured.',
        '',
        '| scan | K | N | dtype | pass | bytes: copy, scan, merge | bytes: ours | ratio | instructions: ours |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for name in SHOWN:
        problem = PROBLEMS[name]
        for dtype, size in (('fp16', 2), ('fp32', 4)):
            for backward in (False, True):
                theirs, ours = (f(problem, size, backward) for f in (three_kernel_bytes, moved_bytes))
                count = counted_instructions(problem, dtype, target, backward)
                lines.append(
                    f'| {name} | {problem.directions} | {problem.d_state} | {dtype} '
                    f'| {"backward" if backward else "forward"} | {theirs:.1f} | {ours:.1f} | {theirs / ours:.2f} '
                    f'| {count:.0f} |'
                )
    return '\n'.join(lines)


if __name__ == '__main__':
    print(model_bytes_table())
