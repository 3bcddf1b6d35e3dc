"""The pyramids serve as encoders of segmentation_models_pytorch, by their name in timm."""

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

import visionssm  # noqa: F401

PYRAMIDS = ['test_vmamba', 'test_msvmamba', 'test_msvmambav3', 'test_groupmamba', 'test_a2mamba', 'test_mambaout']


@pytest.mark.parametrize('decoder', [smp.Unet, smp.UPerNet])
@pytest.mark.parametrize('name', PYRAMIDS)
def test_encoder(name, decoder):
    torch.manual_seed(0)
    model = decoder(f'tu-{name}', encoder_weights=None, in_channels=1, classes=3)
    least = timm.create_model(name, device='meta').pretrained_cfg.get('min_input_size')
    # smp asks for whole strides
    height, width = (-(-side // 32) * 32 for side in least[-2:]) if least else (64, 96)
    masks = model(torch.randn(2, 1, height, width))
    assert masks.shape == (2, 3, height, width)
    masks.square().mean().backward()
    encoder = dict(model.encoder.named_parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.values())
    assert all(p.grad.isfinite().all() for p in encoder.values() if p.grad is not None)
