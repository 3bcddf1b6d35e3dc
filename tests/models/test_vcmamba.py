"""What is VCMamba's own: the contract of all models is in test_models.py, the goldens are in test_goldens.py."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.utils import reparameterize_model
from torch import nn

import visionssm  # noqa: F401  registers the models
from visionssm.models.vcmamba import ConvBlock, VCMamba, VCMambaBlock


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_vcmamba', **kwargs)


def test_blocks():
    """The last blocks of the last stage scan; the first of these has the position embeddings."""
    model = timm.create_model('vcmamba_m', device='meta')
    kinds = [type(block) for stage in model.stages for block in stage.blocks]
    assert kinds == [ConvBlock] * 22 + [VCMambaBlock] * 4
    embeddings = [name for name, _ in model.named_parameters() if 'pos_embed' in name]
    assert embeddings == ['stages.3.blocks.2.pos_embed.weight']


@pytest.mark.parametrize('grid', [(3, 3), (5, 5), (2, 4)], ids=str)
def test_position_embeddings(grid):
    """Upstream's map is one vector per place; of another grid, it is resampled."""
    model = create()
    x = torch.randn(1, 48, *grid)
    [weight] = model.checkpoint_filter_fn({'pos_embed': x}, model).values()
    expected = x if grid == (3, 3) else F.interpolate(x, (3, 3), mode='bicubic')
    torch.testing.assert_close(weight, expected.flatten(2).transpose(1, 2))


def test_position_embeddings_of_a_saved_model():
    large = create(img_size=160).state_dict()
    model = create()
    own = model.checkpoint_filter_fn(large, model)
    model.load_state_dict(own)
    assert create(img_size=(64, 160)).stages[3].blocks[1].pos_embed.grid_size == (2, 5)
    assert model.checkpoint_filter_fn(own, model).keys() == own.keys()


def test_distilled_training():
    model = create(num_classes=5).train()
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == (2, 5)
    model.set_distilled_training()
    logits, taught = model(x)
    assert logits.shape == taught.shape == (2, 5) and not torch.equal(logits, taught)


def test_start():
    """Upstream fills all linear layers last, and so the steps start at softplus(0)."""
    block = create().stages[3].blocks[1]
    assert not block.mixer.dt_proj.bias.any()
    assert block.mlp.fc1.conv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    torch.testing.assert_close(block.mixer.A_log[0].exp(), torch.arange(1.0, 17.0))
    assert create().stages[0].blocks[0].scale.unique().item() == pytest.approx(1e-5)


def test_reparameterised():
    model = create().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    fused = reparameterize_model(model.eval())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    # those before a mixer and its MLP follow no convolution
    assert len([m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]) == 2


def test_parameters():
    """As counted upstream."""
    for size, thousands in {'s': 10479, 'm': 21072, 'b': 31451}.items():
        model = timm.create_model(f'vcmamba_{size}', device='meta')
        assert round(sum(p.numel() for p in model.parameters()) / 1e3) == thousands


def test_bad_arguments():
    with pytest.raises(ValueError, match='mamba_blocks is 9; allowed are 1..8, the last stage'):
        VCMamba(mamba_blocks=9, device='meta')
    with pytest.raises(ValueError, match='depths has 4 stages and dims 3'):
        VCMamba(dims=(8, 8, 8), device='meta')
