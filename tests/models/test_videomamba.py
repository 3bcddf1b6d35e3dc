"""What is VideoMamba's own; class tokens among patches are in test_mambareg.py, the contract in test_models.py."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

import visionssm  # noqa: F401  registers the models
from visionssm.scans import list_scans
from visionssm.weights.published import FAMILIES


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_videomamba', **kwargs).eval()


def test_directions_are_added():
    """Half as much comes out of an average."""
    added, averaged = create(), create(average=True)
    averaged.load_state_dict(added.state_dict())
    for block in averaged.blocks:
        block.mixer.out_proj.weight.data *= 2
    x = torch.randn(2, 3, 96, 96)
    torch.testing.assert_close(added(x), averaged(x))


def test_class_token_is_first():
    model = create()
    stream, order = model._prepare(torch.randn(1, 3, 96, 96))
    assert torch.equal(stream[:, :1], model.cls_token + model.pos_embed[:, :1])
    assert torch.equal(order[0], torch.arange(37, dtype=order.dtype))
    features = model.forward_features(torch.randn(1, 3, 96, 96))
    assert torch.equal(model.forward_head(features), model.head(features[:, 0]))
    row = model.pos_embed[:, 0]
    model.set_input_size((64, 80))
    assert torch.equal(model.pos_embed[:, 0], row)


def test_start():
    """Upstream fills all linear layers last, and so the steps start at softplus(0)."""
    model = create()
    assert not model.cls_token.any() and not model.head.bias.any()
    for block in model.blocks:
        assert block.mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
        bound = (6 / 6 / 128) ** 0.5 / 2  # torch's, by the root of four blocks
        assert bound * 0.9 < block.mixer.out_proj.weight.abs().max() <= bound
        for direction in block.mixer.directions:
            assert not direction.dt_proj.bias.any()
            assert direction.dt_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize('scan', list_scans())
def test_class_token_sees_the_image(scan):
    """In every order some walk ends at it, or there would be one answer for all images."""
    model = create(scan=scan, depth=1, num_classes=4)
    y = model(torch.randn(2, 3, 96, 96) * 10)
    assert not torch.equal(y[0], y[1])


def test_sizes():
    """The size that a name ends in is the model's."""
    for name in FAMILIES['videomamba'].models:
        side = get_pretrained_cfg(name).input_size[1]
        assert name.startswith('test_') or name.endswith(f'_{side}')
    model = timm.create_model('videomamba_tiny_patch16_448', device='meta')
    assert model.patch_embed.img_size == (448, 448) and model.no_weight_decay() == {'pos_embed', 'cls_token'}
    assert sum(p.numel() for p in model.parameters()) == 7_148_008 + (28 * 28 - 14 * 14) * 192
