# %% [markdown]
# # Move a research repository to `selective_scan_fn`
#
# Research code often has the scan as a loop over tokens, or calls a CUDA extension that does not build. Replacing
# it takes one function. This tutorial does so in a small model, shows that outputs and gradients stay the same, and
# measures what it saves. The model below was written for this page in the style of such code.
#
# ## Before
#
# A block of [Mamba](https://arxiv.org/abs/2312.00752) over the tokens of an image. `selective_scan` is the
# recurrence as it stands in the paper (Algorithm 2), one token after the other.

# %%
import time

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn import functional as F

from visionssm.ops import available_backends, selective_scan_fn


def selective_scan(u, delta, A, B, C, D, delta_bias):
    """u, delta (batch, channels, length), A (channels, states), B, C (batch, states, length)."""
    delta = F.softplus(delta + delta_bias[:, None])
    state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(delta[:, :, t, None] * A)
        state = (
            decay * state
            + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        )
        outputs.append((state * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, dim=2) + D[:, None] * u


class Block(nn.Module):
    """Norm, projection, short convolution, scan, gate."""

    def __init__(self, dim=64, states=16, rank=4):
        super().__init__()
        self.states, self.rank = states, rank
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.conv = nn.Conv1d(2 * dim, 2 * dim, 4, padding=3, groups=2 * dim)
        self.x_proj = nn.Linear(2 * dim, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, 2 * dim)
        self.A_log = nn.Parameter(
            torch.arange(1.0, states + 1).log().repeat(2 * dim, 1)
        )
        self.D = nn.Parameter(torch.ones(2 * dim))
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x):
        """(batch, length, dim), the same shape back."""
        u, gate = self.in_proj(self.norm(x)).transpose(1, 2).chunk(2, dim=1)
        u = F.silu(self.conv(u)[..., : x.shape[1]])
        delta, B, C = self.x_proj(u.transpose(1, 2)).split(
            [self.rank, self.states, self.states], dim=2
        )
        delta = (delta @ self.dt_proj.weight.t()).transpose(1, 2)
        y = self.scan(
            u, delta, -self.A_log.exp(), B.transpose(1, 2), C.transpose(1, 2)
        )
        return x + self.out_proj((y * F.silu(gate)).transpose(1, 2))

    def scan(self, u, delta, A, B, C):
        """The part that changes."""
        return selective_scan(u, delta, A, B, C, self.D, self.dt_proj.bias)


# %% [markdown]
# ## After
#
# `selective_scan_fn` takes the same tensors in the same shapes. Softplus and bias go into the function, which needs no
# memory for `delta` that way. Parameters keep their names, so checkpoints load as before.


# %%
class FusedBlock(Block):
    """The same block on the fused scan."""

    def scan(self, u, delta, A, B, C):
        """The part that has changed."""
        return selective_scan_fn(
            u,
            delta,
            A,
            B,
            C,
            self.D,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
        )


print(available_backends('cpu'))

# %% [markdown]
# If the repository calls `selective_scan_fn` of `mamba_ssm`, or `SelectiveScanCuda.apply`, the import is all there
# is to change: names and order of the arguments are those of `mamba_ssm`.
#
# ```python
# # from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
# from visionssm.ops import selective_scan_fn
# ```
#
# ## The same numbers
#
# The same weights and images of 16×16 tokens in both: outputs, and the gradient of every parameter. In single precision
# they differ by rounding, since the kernel adds in another order.

# %%
torch.manual_seed(0)
before, after = Block(), FusedBlock()
after.load_state_dict(before.state_dict())
tokens, weight = torch.randn(2, 4, 256, 64)


def output_and_gradients(block):
    """By name."""
    block.zero_grad()
    output = block(tokens)
    (output * weight).sum().backward()
    return {'output': output.detach()} | {
        name: p.grad.clone() for name, p in block.named_parameters()
    }


expected, got = output_and_gradients(before), output_and_gradients(after)
errors = {
    name: ((got[name] - value).norm() / value.norm()).item()
    for name, value in expected.items()
}
for name, error in errors.items():
    print(f'{name:16} {error:.0e}')
assert max(errors.values()) < 1e-5

# %% [markdown]
# ## The time
#
# Forward and backward, for longer and longer sequences: CPU time of one thread, the best of three.

# %%
torch.set_num_threads(1)


def seconds(block, length):
    """Of one forward and backward pass."""
    x = torch.randn(1, length, 64)
    best = float('inf')
    for _ in range(3):
        start = time.process_time()
        block(x).sum().backward()
        best = min(best, time.process_time() - start)
    return best


lengths = (64, 196, 784, 1568)
times = {
    name: [1000 * seconds(block, n) for n in lengths]
    for name, block in (('loop', before), ('fused', after))
}
for length, loop, fused in zip(lengths, *times.values(), strict=True):
    print(
        f'{length:5} tokens: {loop:7.1f} ms as a loop, {fused:6.1f} ms fused, {loop / fused:.1f} times as fast'
    )
assert times['loop'][-1] > 3 * times['fused'][-1]

# %% alt="Time against the number of tokens, both on logarithmic scales: the fused block is far below the loop"
figure, axis = plt.subplots(figsize=(7, 3.8), layout='constrained')
axis.loglog(
    lengths,
    times['loop'],
    's--',
    color='#d55e00',
    lw=2.5,
    ms=8,
    label='loop over tokens',
)
axis.loglog(
    lengths,
    times['fused'],
    'o-',
    color='#0072b2',
    lw=2.5,
    ms=8,
    label='selective_scan_fn',
)
axis.set_xticks(lengths, lengths, fontsize=12)
axis.minorticks_off()
axis.tick_params(labelsize=12)
axis.set_xlabel('tokens', fontsize=13)
axis.set_ylabel('forward + backward, ms', fontsize=13)
axis.legend(fontsize=13)
axis.grid(alpha=0.3)
plt.show()

# %% [markdown]
# These times are of the machine that built this page; run the notebook for your own. [The op](../op.md) says more:
# several directions at once, visiting orders, and how to choose a backend. A whole family is more than its scan:
# [Adding a family](../adding-a-family.md).
