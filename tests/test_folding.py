"""Batch norms are folded only where the features stay the same."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from dassl_blackbox.trainers.blackbox.openclip.models import build, find, load_model
from dassl_blackbox.trainers.blackbox.openclip.patches import fold_batch_norms
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norms(module):
    return sum(isinstance(part, _BatchNorm) for part in module.modules())


def with_moments(tower):
    """The same with moments that a training could have left, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for norm in (part for part in tower.modules() if isinstance(part, _BatchNorm)):
        for tensor, least in ((norm.running_mean, -0.2), (norm.running_var, 0.5)):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + least)
        if norm.affine:
            with torch.no_grad():
                norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.5)
                norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    return tower.eval().requires_grad_(False)


def features(tower, size):
    pixels = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2))
    return F.normalize(tower(pixels), dim=-1)


class Tower(nn.Module):
    """Convolutions and norms in the order that `forward` has them."""

    def __init__(self, forward, affine=True):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine)
        self.second, self.other = nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.image_size = 16
        self.way = forward

    def forward(self, pixels):
        return self.way(self, pixels).mean((2, 3))


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


def in_a_row(t, x):
    return t.other(t.second(t.norm(t.first(x)).relu()))


def read_twice(t, x):
    found = t.first(x)
    return t.second(t.norm(found) + found)


def norm_used_twice(t, x):
    return t.norm(t.second(t.norm(t.first(x)).relu()))


def norm_first(t, x):
    return t.second(t.norm(t.first(x).relu()))


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    ("way", "left"), [(in_a_row, 0), (read_twice, 2), (norm_used_twice, 2), (norm_first, 2)]
)
def test_features_stay_whatever_the_order(way, left, affine):
    tower = with_moments(Tower(way, affine))
    before = {k: v.clone() for k, v in tower.state_dict().items()}
    folded = fold_batch_norms(tower)
    torch.testing.assert_close(features(folded, 16), features(tower, 16), atol=1e-5, rtol=0)
    assert norms(folded) == left and norms(tower) == 2
    assert all(torch.equal(v, before[k]) for k, v in tower.state_dict().items())


def test_a_convolution_that_changes_its_weights_keeps_its_norm():
    tower = Tower(in_a_row)
    tower.first = Standardised(3, 8, 3)
    assert norms(fold_batch_norms(with_moments(tower))) == 2


def test_the_embedded_model_and_a_resnet_lose_all_their_norms():
    plain = build(find("photo"), None).eval().visual
    folded = load_model("photo").model.visual
    assert norms(plain) > 60 and norms(folded) == 0
    with torch.no_grad():
        assert (features(plain, 192) - features(folded, 192)).abs().max() < 1e-5
    resnet = with_moments(open_clip.create_model("RN50-quickgelu").visual)
    assert norms(resnet) > 50 and norms(fold_batch_norms(resnet)) == 0


def test_half_precision_keeps_its_norms():
    assert norms(load_model("photo", "bf16").model.visual) > 60
