"""The pyramids serve as encoders of segmentation_models_pytorch, by their name in timm."""

import pytest
import segmentation_models_pytorch as smp
import torch

import visionssm  # noqa: F401

PYRAMIDS = [
    'test_vmamba',
    'test_msvmamba',
    'test_msvmambav3',
    'test_groupmamba',
    'test_a2mamba',
    'test_mambavision',
    'test_vssd',
    'test_vcmamba',
    'test_efficientvmamba',
    'test_spatialmamba',
    'test_localvmamba',
    'test_mambaout',
]
DECODERS = [
    (smp.Unet, {}),
    (smp.UnetPlusPlus, {}),
    (smp.MAnet, {}),
    (smp.Linknet, {}),
    (smp.FPN, {}),
    (smp.PSPNet, {}),
    (smp.PAN, {'encoder_output_stride': 16}),
    (smp.DeepLabV3, {'encoder_output_stride': 8}),
    (smp.DeepLabV3Plus, {'encoder_output_stride': 16}),
    (smp.UPerNet, {}),
    (smp.Segformer, {}),
    (smp.DPT, {'encoder_depth': 4, 'decoder_readout': 'ignore'}),
]


# timm's own MambaOut has no output_stride
CASES = [
    pytest.param(name, decoder, args, id=f'{name}-{decoder.__name__}')
    for name in PYRAMIDS
    for decoder, args in DECODERS
    if name != 'test_mambaout' or 'encoder_output_stride' not in args
]


def test_lines_of_the_page(lines):
    smaller = {'vmamba_tiny_s1l8': 'test_vmamba', 'vim_tiny_patch16_224': 'test_vim', "'imagenet'": 'None'}
    found = lines('segmentation_models_pytorch', 0, smaller)
    for name, side in (('unet', 128), ('deeplab', 128), ('dpt', 96)):
        assert found[name].eval()(torch.randn(1, 3, side, side)).shape == (1, 21, side, side)


@pytest.mark.parametrize(('name', 'decoder', 'args'), CASES)
def test_encoder(name, decoder, args):
    torch.manual_seed(0)
    model = decoder(f'tu-{name}', encoder_weights=None, in_channels=1, classes=3, **args)
    height, width = 128, 160  # smp asks for whole strides, PAN for a last map of eight
    masks = model(torch.randn(2, 1, height, width))
    assert masks.shape == (2, 3, height, width)
    masks.square().mean().backward()
    encoder = dict(model.encoder.named_parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.values())
    assert all(p.grad.isfinite().all() for p in encoder.values() if p.grad is not None)


@pytest.mark.parametrize('name', ['test_vim', 'test_lbvim', 'test_plainmamba'])
def test_dense_prediction_from_maps_of_one_resolution(name):
    size = {} if name == 'test_plainmamba' else {'dynamic_img_size': True}
    model = smp.DPT(f'tu-{name}', encoder_weights=None, encoder_depth=4, decoder_readout='ignore', classes=3, **size)
    assert model(torch.randn(1, 3, 128, 160)).shape == (1, 3, 128, 160)


@pytest.mark.parametrize('name', ['test_mobilemamba', 'test_vim', 'test_plainmamba'])
def test_what_smp_refuses(name):
    """It takes maps of strides 4, 8, 16 and 32 (or 2 to 32) alone; MobileMamba's are 16, 32 and 64."""
    with pytest.raises(ValueError, match='Unsupported model downsampling pattern'):
        smp.Unet(f'tu-{name}', encoder_weights=None)
