"""What only VSSD has: sums over all tokens, and no scan order."""

import pytest
import timm
import torch
import torch.nn.functional as F

from visionssm.models.vssd import NonCausalSSD


def by_definition(m, x):
    """One outer product per token and head, as the specification has it."""
    z, u, dt = m.in_proj(x).split(m.split, -1)
    u, B, C = F.silu(m.conv(u)).flatten(1, 2).split(m.parts, -1)
    a = F.softplus(dt.flatten(1, 2) + m.dt_bias) * m.A_log.exp()
    u = u.unflatten(2, (m.num_heads, -1))
    state = torch.einsum('bln,blh,blhp->bhnp', B, a, u)
    y = torch.einsum('bln,bhnp->blhp', C, state) + m.D[:, None] * u
    return m.out_proj(m.norm(y.flatten(2)).unflatten(1, x.shape[1:3]) * z)


def test_mixer_is_the_definition():
    torch.manual_seed(0)
    mixer = NonCausalSSD(16, 4, d_state=8).double()
    x = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_definition(mixer, x))


def test_scan_is_refused():
    with pytest.raises(ValueError, match="VSSD has no scan order to choose.*scan='cross'"):
        timm.create_model('test_vssd', scan='cross')
    with pytest.raises(ValueError, match='no scan order'):
        timm.create_model('test_vssd').set_scan('cross')


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ({'depths': (1, 1)}, 'depths, dims and num_heads have 2, 4 and 4 stages'),
        ({'num_heads': (3, 2, 4, 8)}, 'num_heads has 3 for 16 channels'),
    ],
)
def test_bad_arguments(args, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('test_vssd', **args)


def test_stages_of_one_width():
    """Attention is that of the last stage, whatever the widths."""
    model = timm.create_model('test_vssd', dims=(16, 32, 64, 64), num_heads=(1, 2, 4, 4))
    assert [isinstance(stage.blocks[0].mixer, NonCausalSSD) for stage in model.stages] == [True, True, True, False]
