"""Protects fused networks: the same results, and no map that is overwritten before it is read."""

import pytest
import torch
from torch import Tensor, fx, nn

from hf_detr.layers import folded_backbone
from hf_detr.layers.fused_network import fuse
from hf_detr.layers.onednn import by_onednn, has_fast_onednn

from .test_backbone import image_for
from .test_folded_backbone import assert_close, seen_backbone

pytestmark = pytest.mark.skipif(not has_fast_onednn(), reason="needs oneDNN and AVX2")


def operators_left(network: nn.Module) -> list[str]:
    """Additions and activations that no convolution does, by name."""
    modules = dict(network.named_modules())
    called = [
        type(modules[node.target]).__name__ if node.op == "call_module" else str(node.name)
        for node in network.graph.nodes
    ]
    return sorted(name for name in called if name.startswith(("ReLU", "add", "iadd")))


# What stays: a block without own shortcut adds a map that may be read elsewhere.
LEFT = {
    "resnet18": [],
    "resnet50": [],
    "resnet50d": [],
    "tf_efficientnet_lite0": ["ReLU6"] * 5,  # after timm's own padded convolutions
}


@pytest.mark.parametrize("name", LEFT)
@pytest.mark.parametrize("out_indices", [[-1], [-3, -2, -1]])
def test_features(name: str, out_indices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Protects all maps, also those that are returned and read by later stages."""
    monkeypatch.setattr(folded_backbone, "LEAST_PIXELS", 0)
    backbone, image = seen_backbone(name, out_indices=out_indices), image_for(name)
    expected = backbone(image)
    with torch.no_grad():
        first, again = backbone(image), backbone(image)
    assert_close(first, expected, tolerance=1e-5)
    assert_close(again, first, tolerance=0)
    assert operators_left(backbone.folded.copy.network) == LEFT[name]


class Shortcuts(nn.Module):
    """A convolution whose sum with a map is activated, and what else reads the map."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second = (by_onednn(nn.Conv2d(4, 4, 1)) for _ in range(2))
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> list[Tensor]:
        shortcut = x if self.how == "input" else self.first(x)
        view = shortcut.flatten(2) if self.how == "view" else None
        if self.how == "pooled":
            shortcut = self.pool(shortcut)
        second = self.second(x)
        if self.how == "twice":
            return [self.act(second + second)]
        summed = self.act(second + shortcut)
        if self.how == "read later":
            return [summed + shortcut]
        return [summed, *([shortcut] if self.how == "returned" else []), view]


@pytest.mark.parametrize(
    "how", ["input", "view", "pooled", "read later", "returned", "own", "twice"]
)
def test_what_is_read_elsewhere_is_not_overwritten(how: str) -> None:
    """Protects inputs, views, outputs, maps that broadcast, and those that are read later."""
    torch.manual_seed(0)
    network, x = Shortcuts(how).eval(), torch.randn(2, 4, 3, 3)
    x = x.contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        expected = [None if t is None else t.clone() for t in network(x)]
        fused = fuse(network)
        assert isinstance(fused, fx.GraphModule)
        for got, wanted in zip(fused(x), expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)
    assert torch.equal(x, before)
    assert ("add" in operators_left(fused)) is (how != "own")


class Undecided(nn.Module):
    """A network whose operators depend on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x


def test_untraceable_network() -> None:
    """Protects networks whose operators depend on tensors."""
    network = Undecided()
    assert fuse(network) is network
