"""Protects fused blocks: the same maps, and none that is overwritten before it is read."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from hf_detr.layers import folded_backbone, fused_blocks
from hf_detr.layers.backbone import Backbone
from hf_detr.layers.fused_blocks import FusedBasicBlock, FusedBottleneck, FusedStem
from hf_detr.layers.onednn import FusedConvolution, has_fast_onednn

from .test_backbone import image_for
from .test_folded_backbone import assert_close, seen_backbone

pytestmark = pytest.mark.skipif(not has_fast_onednn(), reason="needs oneDNN and AVX2")


@pytest.fixture(autouse=True)
def folded_whatever_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images of these tests are small."""
    monkeypatch.setattr(folded_backbone, "LEAST_PIXELS", 0)


def count(backbone: Backbone) -> tuple[int, int]:
    """Blocks that are fused, and convolutions that activate."""
    modules = list(backbone.folded.copy.network.modules())
    blocks = [module for module in modules if type(module) in (FusedBasicBlock, FusedBottleneck)]
    convolutions = [module for module in modules if type(module) is FusedConvolution]
    return len(blocks), sum(layer.activation is not None for layer in convolutions)


def checked(backbone: Backbone, image: Tensor) -> list[Tensor]:
    """All maps, after comparing them with those of the network itself, twice."""
    before, expected = image.clone(), backbone(image)
    with torch.no_grad():
        first = backbone(image)
        kept = [feature.clone() for feature in first]
        again = backbone(image)
    assert_close(first, expected, tolerance=1e-5)
    assert_close(again, kept, tolerance=0)
    assert_close(first, kept, tolerance=0)
    assert torch.equal(image, before)
    return first


# Without its own convolution, a stage's first block may not overwrite the shortcut.
COUNTS = {
    "resnet18": (7, 15),
    "resnet50": (16, 49),
    "resnet50d": (16, 48),  # three convolutions before pooling
    "wide_resnet50_2": (16, 49),
    "resnetaa50": (13, 39),  # blurs when the stride is 2
    "seresnet50": (0, 1),
    "tf_efficientnet_lite0": (0, 27),  # the norms' own activations
}


@pytest.mark.parametrize("name", COUNTS)
def test_maps(name: str) -> None:
    """Protects every map that is returned, those that later stages read, and what is fused."""
    backbone = seen_backbone(name)
    checked(backbone, image_for(name))
    assert count(backbone) == COUNTS[name]


def test_memory_formats_and_sizes() -> None:
    """Protects images in channels-last memory, views, one pixel, and none."""
    backbone = seen_backbone("resnet18")
    image = torch.randn(2, 3, 70, 66)
    checked(backbone, image.contiguous(memory_format=torch.channels_last))
    checked(backbone, image[:, :, ::2])
    checked(backbone, image[:1, :, :32, :32])


@pytest.mark.parametrize("step_bytes", [1, 2**18])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 33), (66, 35), (67, 64), (129, 20)])
def test_stem_by_bands(
    step_bytes: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects the rows at the borders of bands and images, of odd and even heights."""
    monkeypatch.setattr(fused_blocks, "BAND_BYTES", step_bytes)
    backbone = seen_backbone("resnet18")
    checked(backbone, torch.randn(2, 3, *size))
    assert type(backbone.folded.copy.network["conv1"]) is FusedStem


def test_maps_of_the_stem() -> None:
    """Protects a model that also reads the map before pooling, which a fused stem doesn't make."""
    backbone = seen_backbone("resnet18", out_indices=[0, 1])
    maps = checked(backbone, torch.randn(1, 3, 66, 70))
    assert maps[0].shape[2:] == (33, 35)


def test_dilated_last_stage() -> None:
    """Protects convolutions whose padding keeps the size because of their dilation."""
    backbone = seen_backbone("resnet50", output_stride=16, out_indices=[-2, -1])
    checked(backbone, torch.randn(1, 3, 65, 71))
    assert count(backbone) == (16, 49)


def test_bfloat16() -> None:
    """Protects half precision: as near to float32 as the network itself."""
    backbone, image = seen_backbone("resnet50"), image_for("resnet50")
    exact = backbone(image)[-1]
    backbone.bfloat16()
    plain = backbone(image.bfloat16())[-1]
    with torch.no_grad():
        fused = backbone(image.bfloat16())[-1]
    assert (fused - exact).norm() <= 1.2 * (plain - exact).norm()


def test_autocast_after_inference() -> None:
    """Protects autocast, whose dtype a fused convolution must give, too."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    with torch.no_grad():
        backbone(image)
        with torch.autocast("cpu", torch.bfloat16):
            got = backbone(image)[-1]
    assert got.dtype == torch.bfloat16
    assert_close([got.float()], [backbone(image)[-1]], tolerance=0.05)


@pytest.mark.parametrize("what", ["pixel", "weight", "mean"])
def test_nan_stays(what: str) -> None:
    """Protects from plausible numbers of a model that diverged: oneDNN would make 0 of NaN."""
    backbone, image = seen_backbone("resnet18"), image_for("resnet18")
    with torch.no_grad():
        backbone(image)
        network = backbone.conv_encoder["model"]
        place = {"pixel": image, "weight": network.conv1.weight, "mean": network.bn1.running_mean}
        place[what].view(-1)[3] = torch.nan
        assert backbone(image)[-1].isnan().any()
        place[what].view(-1)[3] = 0.1
        checked(backbone, image)
    assert count(backbone)[0] == 7


def test_other_networks_at_the_same_time() -> None:
    """Protects threads: making a copy changes nothing of other networks."""
    image = image_for("resnet18")
    backbones = [seen_backbone("resnet18") for _ in range(4)]
    expected = [backbone(image) for backbone in backbones]
    other = nn.Linear(2, 2)

    def run(backbone: Backbone) -> list[Tensor]:
        with torch.no_grad():
            for _ in range(20):
                other(torch.randn(1, 2))
            return backbone(image)

    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(run, backbones), expected, strict=True):
            assert_close(got, wanted)
