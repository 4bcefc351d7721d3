"""Swin Transformers in checkpoints of DINO's official code, MMDetection and detrex.

No checkpoint or recording is at hand. Names and the order of operations were read in the source,
and a naive Swin computes the maps to compare with:

- IDEA-Research/DINO, models/dino/swin_transformer.py and backbone.py at 2a4df86c;
- open-mmlab/mmdetection, mmdet/models/backbones/swin.py at 09269cfe, whose patches are merged by
  `nn.Unfold`;
- facebookresearch/detectron2, detectron2/modeling/backbone/swin.py, which detrex uses: the official
  names without the number of the backbone.
"""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from timm import create_model
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from hf_detr import (
    DinoDetrForObjectDetection,
    convert_official_checkpoint,
    export_official_checkpoint,
)
from hf_detr.checkpoints.checkpoint_names import official_name
from hf_detr.checkpoints.official_configuration import dilation_and_heads, read_configuration
from hf_detr.checkpoints.official_options import official_options
from hf_detr.checkpoints.other_libraries import rename_other_libraries
from hf_detr.checkpoints.published_checkpoints import (
    PublishedCheckpoint,
    make_published_card,
    published_checkpoints,
)
from hf_detr.checkpoints.swin_names import (
    has_swin_names,
    swin_fields,
    with_official_swin_names,
)
from hf_detr.layers.backbone import Backbone
from hf_detr.models.object_detector import ObjectDetector

from ..tiny import tiny_config, tiny_detector

TINY = "swin_tiny_patch4_window7_224"
MMDETECTION = (
    (r"^backbone\.0\.", "backbone."),
    (r"\.patch_embed\.proj\.", ".patch_embed.projection."),
    (r"\.layers\.", ".stages."),
    (r"\.attn\.", ".attn.w_msa."),
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
)


def renamed(rules: tuple[tuple[str, str], ...], name: str) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture(scope="module")
def detector() -> ObjectDetector:
    """A small DINO with the smallest Swin Transformer, all of whose weights are random."""
    model = tiny_detector("dino_detr", backbone=TINY, backbone_kwargs={"output_norm": True})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.model.backbone.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise, alpha=0.1 if parameter.ndim == 1 else 0.02)
    return model


@pytest.fixture(scope="module")
def file(detector: ObjectDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its official checkpoint."""
    folder = tmp_path_factory.mktemp("swin")
    detector.save_pretrained(folder / "hub")
    export_official_checkpoint(folder / "hub", folder / "official.pth")
    return folder / "official.pth"


@pytest.fixture(scope="module")
def weights(file: Path) -> dict[str, Tensor]:
    return torch.load(file, weights_only=True)["model"]


class NaiveSwin:
    """The authors' Swin Transformer, window by window, with official names of weights."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights
        self.depths, self.heads, self.window = (2, 2, 6, 2), (3, 6, 12, 24), 7

    def linear(self, name: str, x: Tensor) -> Tensor:
        name = f"backbone.0.{name}"
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def norm(self, name: str, x: Tensor) -> Tensor:
        scale, shift = (self.weights[f"backbone.0.{name}.{kind}"] for kind in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], scale, shift)

    def __call__(self, image: Tensor) -> list[Tensor]:
        """The maps (1, C, h, w) after stages 1, 2 and 3, from 0, of an image (1, 3, H, W)."""
        image = F.pad(image, (0, -image.shape[-1] % 4, 0, -image.shape[-2] % 4))
        names = [f"backbone.0.patch_embed.proj.{kind}" for kind in ("weight", "bias")]
        x = F.conv2d(image, *(self.weights[name] for name in names), stride=4)[0]
        x = self.norm("patch_embed.norm", x.permute(1, 2, 0))  # (h, w, C)
        maps = []
        for stage, depth in enumerate(self.depths):
            if stage > 0:
                x = self.merge(f"layers.{stage - 1}.downsample", x)
            for number in range(depth):
                name, shift = f"layers.{stage}.blocks.{number}", (number % 2) * (self.window // 2)
                normal = self.norm(f"{name}.norm1", x)
                x = x + self.attention(f"{name}.attn", normal, self.heads[stage], shift)
                hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
                x = x + self.linear(f"{name}.mlp.fc2", hidden)
            if stage > 0:
                maps.append(self.norm(f"norm{stage}", x).permute(2, 0, 1)[None])
        return maps

    def merge(self, name: str, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[1] % 2, 0, x.shape[0] % 2))
        patches = [x[row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.linear(f"{name}.reduction", self.norm(f"{name}.norm", torch.cat(patches, -1)))

    def attention(self, name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        """Attention in windows that start `shift` cells later, around the padded map (h, w, C)."""
        window, (height, width) = self.window, x.shape[:2]
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        result, sides = torch.zeros_like(x), x.shape[:2]
        for corner in product(*(range(0, side, window) for side in sides)):
            cells = [range(start, start + window) for start in corner]
            places = torch.tensor(list(product(*cells)))  # in the shifted map (N, 2)
            rows, columns = ((places + shift) % torch.tensor(sides)).T
            # Cells that the shift brought to the other side don't see the others.
            moved = places >= torch.tensor(sides) - shift
            hidden = (moved[:, None] != moved[None]).any(-1)
            result[rows, columns] = self.in_window(name, x[rows, columns], heads, hidden)
        return self.linear(f"{name}.proj", result[:height, :width])

    def in_window(self, name: str, x: Tensor, heads: int, hidden: Tensor) -> Tensor:
        q, k, v = self.linear(f"{name}.qkv", x).view(len(x), 3, heads, -1).permute(1, 2, 0, 3)
        steps = torch.tensor(list(product(range(self.window), repeat=2)))
        row, column = (steps[:, None] - steps[None] + self.window - 1).unbind(-1)
        table = self.weights[f"backbone.0.{name}.relative_position_bias_table"]
        bias = table[row * (2 * self.window - 1) + column].permute(2, 0, 1)
        scores = q @ k.mT / q.shape[-1] ** 0.5 + bias - 100.0 * hidden
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)


# The second size makes no map whole windows, the third makes the last ones smaller than a window.
@pytest.mark.parametrize("size", [(224, 224), (250, 333), (90, 131)])
def test_maps(size: tuple[int, int], detector: ObjectDetector, weights: dict[str, Tensor]) -> None:
    """Protects published accuracy: maps of any size are those of a naive Swin with norms."""
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        maps = detector.model.backbone(image)
        expected = NaiveSwin(weights)(image)
    for got, one in zip(maps, expected, strict=True):
        assert_close(got, one, atol=2e-5, rtol=1e-4)


def test_round_trip(detector: ObjectDetector, file: Path, tmp_path: Path) -> None:
    """Hub → official → Hub keeps weights bit for bit, and the backbone's configuration."""
    options = torch.load(file, weights_only=True)["args"]
    assert (options["backbone"], options["return_interm_indices"]) == ("swin_T_224_1k", [1, 2, 3])
    convert_official_checkpoint(file, tmp_path / "hub")
    loaded, info = type(detector).from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(info.values()), info
    assert_close(loaded.state_dict(), detector.state_dict(), atol=0, rtol=0)
    assert loaded.config.backbone_config.to_dict() == detector.config.backbone_config.to_dict()


def swin_weights() -> dict[str, Tensor]:
    """Official weights of the smallest Swin Transformer with norms of three maps."""
    config = tiny_config("dino_detr", backbone=TINY, backbone_kwargs={"output_norm": True})
    state = Backbone(config.backbone_config).state_dict()
    return {official_name(f"model.backbone.{key}", "dino_detr")[0]: w for key, w in state.items()}


def as_in_mmdetection(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's names, indices and order of merged patches, that of `nn.Unfold`."""
    found = {renamed(MMDETECTION, name): weight for name, weight in weights.items()}
    for name, weight in found.items():
        if ".downsample." in name:
            width = weight.shape[-1] // 4
            # Where each channel of the four patches goes: their numbers, merged by both.
            numbers = torch.arange(4.0 * width).view(1, 2, 2, width)  # of a patch (1, h, w, C)
            official = torch.cat(
                [numbers[:, h, w] for h, w in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=-1
            )
            unfolded = F.unfold(numbers.permute(0, 3, 1, 2), 2)[..., 0]
            place = {number: index for index, number in enumerate(official[0].tolist())}
            found[name] = weight[..., [place[number] for number in unfolded[0].tolist()]]
    index = "backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"
    return {**found, index: torch.zeros(49, 49, dtype=torch.int64)}


def test_names_of_mmdetection(weights: dict[str, Tensor]) -> None:
    """Names, indices and the order of merged patches become the official ones."""
    backbone = {name: one for name, one in weights.items() if name.startswith("backbone.")}
    given = as_in_mmdetection(backbone)
    changed = [name for name in backbone if name not in given]
    assert len(changed) == len(backbone)
    official = with_official_swin_names(given)
    assert official.keys() == backbone.keys()
    assert_close(official, backbone, atol=0, rtol=0)


def test_names_of_detrex(weights: dict[str, Tensor]) -> None:
    """detectron2's names only lack the number of the backbone."""
    given = {name.replace("backbone.0.", "backbone."): one for name, one in weights.items()}
    assert_close(with_official_swin_names(given), weights, atol=0, rtol=0)


@pytest.mark.parametrize(
    "name",
    [
        TINY,
        "swin_small_patch4_window7_224",
        "swin_base_patch4_window7_224",
        "swin_base_patch4_window12_384",
    ],
)
def test_fields(name: str) -> None:
    """Width, depth and windows tell which Swin it is."""
    with torch.device("meta"):
        shapes = shapes_of(create_model(name, features_only=True))
    assert swin_fields(shapes) == {"backbone": name, "num_channels": 3, "output_norm": True}


# With four and with five scales
PUBLISHED = [one for one in published_checkpoints() if re.search("swin.*36", one.name)]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda one: one.name)
def test_published_checkpoints(published: PublishedCheckpoint) -> None:
    """Weights of the authors' sizes give the configuration that their card states."""
    config = published.make_config()
    with torch.device("meta"):
        model = DinoDetrForObjectDetection(config)
    sizes: dict[str, Any] = {}
    for name, weight in model.state_dict().items():
        official, part = official_name(name, "dino_detr")
        rows, *others = weight.shape
        sizes[official] = (rows if part is None else 3 * rows, *others)
    weights = {name: torch.zeros(()).expand(size) for name, size in sizes.items()}
    weights["backbone.0.layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(144, 144)
    weights = rename_other_libraries(weights, None).weights
    found = read_configuration(weights, official_options(config), dilation=False, num_heads=8)
    found, expected = found.to_dict(), config.to_dict()
    for other in ("architectures", "id2label", "label2id"):  # of converted files, and COCO's names
        del found[other], expected[other]
    assert found == expected


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes under official names."""
    state = model.state_dict()
    return {
        "backbone.0." + name.replace("layers_", "layers."): tuple(one.shape)
        for name, one in state.items()
    }


def test_other_transformers_are_no_swin(weights: dict[str, Tensor]) -> None:
    """FocalNet's names are alike, but it has no table of positions in a window."""
    others = {name: one for name, one in weights.items() if "bias_table" not in name}
    assert has_swin_names(weights) and not has_swin_names(others)
    assert swin_fields({name: tuple(one.shape) for name, one in others.items()}) is None
    with pytest.raises(ValueError, match="isn't a ResNet .* it has backbone.0.layers"):
        read_configuration(others, {}, dilation=False, num_heads=8)


def test_cards_state_the_norm() -> None:
    """Who builds the configuration of the card gets the model; its tests have no recording."""
    card = str(make_published_card(PUBLISHED[0]))
    assert "| `backbone_kwargs` | `{'output_norm': True}` | `None` |" in card
    assert "was not recorded with this backbone" in card


def test_unknown_swin(weights: dict[str, Tensor]) -> None:
    """Other sizes are named, with those that there are."""
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    shapes["backbone.0.patch_embed.proj.weight"] = (100, 3, 4, 4)
    expected = r"width 100 with \(2, 2, 6, 2\) blocks and windows of 7, .* swin_tiny_patch4_window7"
    with pytest.raises(ValueError, match=expected):
        swin_fields(shapes)


def test_published_names_need_no_options() -> None:
    """Files of MMDetection and detrex, which hold no options, convert as those of ResNets do."""
    names = ("co_dino_5scale_swin_large_16e_o365tococo.pth", "dino-5scale_swin-l_8xb2-36e_coco.pth")
    assert {dilation_and_heads({}, name, None, None) for name in names} == {(False, 8)}


@pytest.mark.parametrize(
    ("variant", "changes", "expected"),
    [
        ("detr", {"backbone": TINY}, "the backbone 'swin_tiny_patch4_window7_224' .only resnet18"),
        ("dino_detr", {"backbone": TINY}, "output_norm=False of swin_tiny"),
        ("dino_detr", {"backbone_kwargs": {"output_norm": True}}, "output_norm=True of resnet50"),
        ("dino_detr", {"backbone": "swin_small_patch4_window7_224"}, "the backbone 'swin_small"),
    ],
)
def test_models_that_the_official_code_lacks(
    variant: str, changes: dict[str, Any], expected: str
) -> None:
    """Such a file would be another model there."""
    config = tiny_config(variant, **{"backbone": "resnet50", **changes})
    with pytest.raises(ValueError, match=expected):
        official_options(config)
