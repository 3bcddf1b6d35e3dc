"""What is EfficientVMamba's own: the contract is in test_models.py, the goldens are in test_goldens.py."""

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

import visionssm  # noqa: F401  registers the models
from visionssm.models.efficientvmamba import InvertedResidual, ScanBlock
from visionssm.scans import get_scan


def create(**kwargs):
    torch.manual_seed(0)
    return timm.create_model('test_efficientvmamba', **kwargs)


def test_stages():
    """Two stages scan, two do not."""
    model = create()
    kinds = [ScanBlock, ScanBlock, InvertedResidual, InvertedResidual]
    assert [type(stage.blocks[0]) for stage in model.stages] == kinds
    assert get_scan(model.scan).spec == {'name': 'atrous', 'pad': 'zero'}


def test_names_of_upstream():
    """Blocks, permutations and patch merging are one numbered list in the stages that do not scan."""
    model = create(depths=(1, 1, 3, 1))
    names = {
        'layers.2.1.conv_pw.0.weight': 'stages.2.blocks.0.expand.conv.weight',
        'layers.2.3.conv_pw2.1.bias': 'stages.2.blocks.2.reduce.bn.bias',
        'layers.2.5.norm.weight': 'stages.3.downsample.norm.weight',
        'layers.0.downsample.reduction.weight': 'stages.1.downsample.reduction.weight',
        'backbone.layers.0.blocks.0.ln_1.weight': 'stages.0.blocks.0.norm.weight',
        'layers.1.blocks.0.self_attention.out_norm.bias': 'stages.1.blocks.0.mixer.norm.bias',
        'layers.1.blocks.0.se.channel_select.bias': 'stages.1.blocks.0.gate.fc2.bias',
        'classifier.head.bias': 'head.fc.bias',
    }
    state = model.state_dict()
    upstream = {theirs: state[ours] for theirs, ours in names.items()}
    assert list(model.checkpoint_filter_fn(upstream, model)) == list(names.values())


def test_one_gate():
    """Scan and convolution are weighed by the same layers, each by its own mean."""
    block = create().stages[0].blocks[0].double().eval()
    x = torch.randn(2, 6, 8, 16, dtype=torch.float64)
    y = block.norm(x)

    def gated(z):
        weights = block.gate.fc2(nn.functional.gelu(block.gate.fc1(block.gate.norm(z).mean((1, 2)))))
        return z * weights.sigmoid()[:, None, None]

    expected = x + gated(block.mixer(y)) + gated(block.proj(nn.functional.gelu(block.conv(y))))
    torch.testing.assert_close(block(x), expected)


def test_reparameterised():
    model = create().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    fused = reparameterize_model(model.eval())
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]


def test_parameters():
    """As counted upstream."""
    counts = {'tiny': 6_493_660, 'small': 11_273_688, 'base': 33_717_136}
    for size, count in counts.items():
        model = timm.create_model(f'efficientvmamba_{size}', device='meta')
        assert sum(p.numel() for p in model.parameters()) == count
