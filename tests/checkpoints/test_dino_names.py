"""Names and predictions of DINO in MMDetection, detrex and Co-DETR.

No checkpoint or recording of these libraries is at hand. The names were read in their source, and a
naive DINO predicts with them:

- open-mmlab/mmdetection, mmdet/models/detectors/dino.py at fe3f809a, layers/transformer/
  dino_layers.py at 013e5419, configs/dino/dino-4scale_r50_8xb2-12e_coco.py at 4c111175;
- IDEA-Research/detrex, projects/dino/modeling/dino.py at d03cbef5, dino_transformer.py at 9072ce90,
  configs/models/dino_r50.py at 053d06f2, detrex/layers/position_embedding.py at 63535d9d;
- Sense-X/Co-DETR, projects/models/co_dino_head.py and transformer.py at 2bc657a9, and in
  mmdetection projects/CO-DETR/codetr/co_dino_head.py at 03426327, which names labels differently.
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from hf_detr import convert_official_checkpoint, export_official_checkpoint
from hf_detr.checkpoints.checkpoint_names import first_name
from hf_detr.checkpoints.dino_names import position_options
from hf_detr.checkpoints.official_options import official_options
from hf_detr.checkpoints.other_libraries import rename_other_libraries

from ..some_weights import batch, named_weights
from ..tiny import tiny_config
from .test_mmdetection_names import DETECTRON2, backbone_shapes
from .test_swin_names import as_in_mmdetection, swin_weights

NUM_POINTS = 4


@dataclass(frozen=True)
class Library:
    """Where a library's DINO has its weights; {} is the number of a layer, level or head.

    Attributes:
        levels, extra_levels: projections of the backbone's maps, and of further levels.
        group_norm: the norm of a projection.
        biased: whether projections have a bias.
        layers: all layers, with the kind in front.
        self_attention, deformable, encoder_deformable, ffn: parts of a layer.
        level_embedding, tokens, tokens_norm, contents, labels: of the transformer.
        class_heads, box_heads: of the decoder's layers, and then of the proposals.
        box_layers, reference_layers: linear layers of the two MLPs.
        temperature, offset: of the sines of positions.
    """

    class_heads: str
    box_heads: str
    contents: str
    labels: str
    prefix: str = ""
    group_norm: str = "gn"
    biased: bool = False
    self_attention: str = "attentions.0.attn"
    deformable: str = "attentions.1"
    encoder_deformable: str = "attentions.0"
    ffn: str = "ffns.0"
    level_embedding: str = "level_embeds"
    tokens: str = "enc_output"
    tokens_norm: str = "enc_output_norm"
    box_layers: tuple[str, ...] = ("0", "2", "4")
    reference_layers: tuple[str, ...] = ("layers.0", "layers.1")
    temperature: float = 20
    offset: float = 0


CO_DETR = {
    "class_heads": "query_head.cls_branches.{}",
    "box_heads": "query_head.reg_branches.{}",
    "contents": "query_head.transformer.query_embed",
    "prefix": "query_head.transformer.",
    "reference_layers": ("0", "2"),
}
LIBRARIES = {
    "mmdetection": Library(
        class_heads="bbox_head.cls_branches.{}",
        box_heads="bbox_head.reg_branches.{}",
        contents="query_embedding",
        labels="dn_query_generator.label_embedding",
        self_attention="self_attn.attn",
        deformable="cross_attn",
        encoder_deformable="self_attn",
        ffn="ffn",
        level_embedding="level_embed",
        tokens="memory_trans_fc",
        tokens_norm="memory_trans_norm",
    ),
    "detrex": Library(
        class_heads="class_embed.{}",
        box_heads="bbox_embed.{}",
        contents="transformer.tgt_embed",
        labels="label_enc",
        prefix="transformer.",
        group_norm="norm",
        biased=True,
        box_layers=("layers.0", "layers.1", "layers.2"),
        temperature=10000,
        offset=-0.5,
    ),
    "co-detr": Library(labels="query_head.label_embedding", **CO_DETR),
    "co-detr in mmdetection": Library(labels="query_head.dn_generator.label_embedding", **CO_DETR),
}
AUXILIARY = {
    "rpn_head.rpn_conv.weight": (4, 4, 3, 3),
    "roi_head.0.bbox_head.fc_cls.weight": (6, 4),
    "bbox_head.0.atss_cls.weight": (5, 4, 3, 3),
    "query_head.downsample.0.weight": (4, 4, 3, 3),
    "query_head.transformer.aux_pos_trans.1.weight": (4, 8),
    "query_head.transformer.aux_pos_trans_norm.0.bias": (4,),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model."""

    channels: tuple[int, ...] = (128, 256, 512)
    levels: int = 4
    width: int = 64
    heads: int = 8
    ffn: int = 96
    encoder_layers: int = 2
    decoder_layers: int = 3
    queries: int = 7
    classes: int = 5


def shapes_of(library: Library, sizes: Sizes) -> dict[str, Any]:
    """Shapes of all weights but the backbone's; an alias has the name of the same weight."""
    width, prefix = sizes.width, library.prefix
    shapes: dict[str, Any] = {
        prefix + library.level_embedding: (sizes.levels, width),
        f"{library.contents}.weight": (sizes.queries, width),
        f"{library.labels}.weight": (sizes.classes, width),
    }

    def norm(name: str, size: int = width) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def linear(name: str, rows: int, columns: int = width) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (rows, columns), (rows,)

    for level in range(sizes.levels):
        place, kernel = projection(level, sizes)
        before = sizes.channels[min(level, len(sizes.channels) - 1)]
        before = before if level <= len(sizes.channels) else width
        shapes[f"{place}.conv.weight"] = (width, before, kernel, kernel)
        if library.biased:
            shapes[f"{place}.conv.bias"] = (width,)
        norm(f"{place}.{library.group_norm}")

    def layer(name: str, deformable: str, norms: int) -> None:
        points = sizes.heads * sizes.levels * NUM_POINTS
        linear(f"{name}.{deformable}.sampling_offsets", 2 * points)
        linear(f"{name}.{deformable}.attention_weights", points)
        linear(f"{name}.{deformable}.value_proj", width)
        linear(f"{name}.{deformable}.output_proj", width)
        linear(f"{name}.{library.ffn}.layers.0.0", sizes.ffn)
        linear(f"{name}.{library.ffn}.layers.1", width, sizes.ffn)
        for number in range(norms):
            norm(f"{name}.norms.{number}")

    for number in range(sizes.encoder_layers):
        layer(f"{prefix}encoder.layers.{number}", library.encoder_deformable, 2)
    for number in range(sizes.decoder_layers):
        name = f"{prefix}decoder.layers.{number}"
        layer(name, library.deformable, 3)
        attention = f"{name}.{library.self_attention}"
        shapes[f"{attention}.in_proj_weight"] = (3 * width, width)
        shapes[f"{attention}.in_proj_bias"] = (3 * width,)
        linear(f"{attention}.out_proj", width)
    norm(f"{prefix}decoder.norm")
    first, second = library.reference_layers
    linear(f"{prefix}decoder.ref_point_head.{first}", width, 2 * width)
    linear(f"{prefix}decoder.ref_point_head.{second}", width)
    linear(prefix + library.tokens, width)
    norm(prefix + library.tokens_norm)
    for number in range(sizes.decoder_layers + 1):
        linear(library.class_heads.format(number), sizes.classes)
        for index, part in enumerate(library.box_layers):
            rows = width if index < 2 else 4
            linear(f"{library.box_heads.format(number)}.{part}", rows)
    if library is LIBRARIES["detrex"]:
        heads = [name for name in shapes if re.match("(class|bbox)_embed", name)]
        shapes |= {f"transformer.decoder.{name}": name for name in heads}
    return shapes


def projection(level: int, sizes: Sizes) -> tuple[str, int]:
    """Name of a level's projection, and the size of its kernel."""
    further = level - len(sizes.channels)
    return (f"neck.convs.{level}", 1) if further < 0 else (f"neck.extra_convs.{further}", 3)


def weights_of(name: str, sizes: Sizes) -> dict[str, Tensor]:
    library = LIBRARIES[name]
    backbone = DETECTRON2 if name == "detrex" else backbone_shapes()
    weights = named_weights(backbone | shapes_of(library, sizes))
    if "co-detr" in name:
        weights |= named_weights(AUXILIARY)
    return weights


# ---------------------------------------------------------------- a naive DINO


class NaiveDino:
    """Predicts with a library's weights, by their names in the library; one image, no padding."""

    def __init__(self, library: Library, sizes: Sizes, weights: dict[str, Tensor]) -> None:
        self.library, self.sizes, self.weights = library, sizes, weights

    def linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], weight, bias)

    def mlp(self, names: list[str], x: Tensor) -> Tensor:
        for name in names[:-1]:
            x = self.linear(name, x).relu()
        return self.linear(names[-1], x)

    def class_logits(self, number: int, x: Tensor) -> Tensor:
        return self.linear(self.library.class_heads.format(number), x)

    def box_deltas(self, number: int, x: Tensor) -> Tensor:
        head = self.library.box_heads.format(number)
        return self.mlp([f"{head}.{part}" for part in self.library.box_layers], x)

    def project(self, maps: list[Tensor]) -> list[Tensor]:
        levels: list[Tensor] = []
        for level in range(self.sizes.levels):
            name, kernel = projection(level, self.sizes)
            source = levels[-1] if level > len(maps) else maps[min(level, len(maps) - 1)]
            options = {} if kernel == 1 else {"stride": 2, "padding": 1}
            weight, bias = (self.weights.get(f"{name}.conv.{kind}") for kind in ("weight", "bias"))
            norm = f"{name}.{self.library.group_norm}"
            scale, shift = self.weights[f"{norm}.weight"], self.weights[f"{norm}.bias"]
            levels.append(F.group_norm(F.conv2d(source, weight, bias, **options), 32, scale, shift))
        return levels

    def positions(self, height: int, width: int, level: int) -> Tensor:
        """(height · width, D), y before x."""
        offset, half = self.library.offset, self.sizes.width // 2
        rows, columns = torch.arange(1.0, height + 1), torch.arange(1.0, width + 1)
        y = (rows + offset) / (height + 1e-6) * 2 * math.pi
        x = (columns + offset) / (width + 1e-6) * 2 * math.pi
        y = naive_sines(y, half, self.library.temperature)[:, None].expand(-1, width, -1)
        x = naive_sines(x, half, self.library.temperature)[None].expand(height, -1, -1)
        levels = self.weights[self.library.prefix + self.library.level_embedding]
        return torch.cat([y, x], dim=-1).flatten(0, 1) + levels[level]

    def deformable(
        self, name: str, queries: Tensor, references: Tensor, memory: Tensor, shapes: list
    ) -> Tensor:
        """Attention of queries (Q, D) at points (Q, 2) or boxes (Q, 4)."""
        sizes, count = self.sizes, len(queries)
        values = self.linear(f"{name}.value_proj", memory).unflatten(-1, (sizes.heads, -1))
        places = (sizes.heads, sizes.levels, NUM_POINTS)
        offsets = self.linear(f"{name}.sampling_offsets", queries).view(count, *places, 2)
        weights = self.linear(f"{name}.attention_weights", queries).view(count, sizes.heads, -1)
        weights = weights.softmax(-1).view(count, *places)
        total, start = torch.zeros(count, sizes.heads, values.shape[-1]), 0
        for level, (height, width) in enumerate(shapes):
            if references.shape[-1] == 2:
                moved = offsets[:, :, level] / torch.tensor([width, height])
            else:
                moved = offsets[:, :, level] / NUM_POINTS * references[:, None, None, 2:] / 2
            points = references[:, None, None, :2] + moved  # (Q, M, K, 2)
            part = values[start : start + height * width].view(height, width, *values.shape[1:])
            start += height * width
            found = F.grid_sample(
                part.permute(2, 3, 0, 1), 2 * points.transpose(0, 1) - 1, align_corners=False
            )  # (M, D / M, Q, K)
            total += torch.einsum("mdqk,qmk->qmd", found, weights[:, :, level])
        return self.linear(f"{name}.output_proj", total.flatten(1))

    def feed_forward(self, layer: str, norm: int, x: Tensor) -> Tensor:
        ffn = f"{layer}.{self.library.ffn}.layers"
        return self.norm(f"{layer}.norms.{norm}", x + self.mlp([f"{ffn}.0.0", f"{ffn}.1"], x))

    def self_attention(self, name: str, x: Tensor, positions: Tensor) -> Tensor:
        places = [f"{name}.{kind}" for kind in ("in_proj_weight", "in_proj_bias")]
        projections = zip(*(self.weights[place].chunk(3) for place in places), strict=True)
        inputs = (x + positions, x + positions, x)
        q, k, v = (
            F.linear(part, *projection).unflatten(-1, (self.sizes.heads, -1)).transpose(0, 1)
            for part, projection in zip(inputs, projections, strict=True)
        )
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return self.linear(f"{name}.out_proj", (weights @ v).transpose(0, 1).flatten(1))

    def __call__(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (Q, C) and boxes (Q, 4) of the last layer, of the backbone's maps."""
        prefix, library = self.library.prefix, self.library
        levels = [level[0] for level in self.project(maps)]
        shapes = [tuple(level.shape[-2:]) for level in levels]
        memory = torch.cat([level.flatten(1).T for level in levels])
        positions = torch.cat([self.positions(*shape, i) for i, shape in enumerate(shapes)])
        centers = torch.cat([naive_centers(*shape) for shape in shapes])
        for number in range(self.sizes.encoder_layers):
            layer = f"{prefix}encoder.layers.{number}"
            attention = f"{layer}.{library.encoder_deformable}"
            found = self.deformable(attention, memory + positions, centers, memory, shapes)
            memory = self.norm(f"{layer}.norms.0", memory + found)
            memory = self.feed_forward(layer, 1, memory)
        boxes = self.proposals(memory, centers, shapes)
        return self.decode(memory, boxes, shapes)

    def proposals(self, memory: Tensor, centers: Tensor, shapes: list) -> Tensor:
        last = self.sizes.decoder_layers
        sides = [torch.full((h * w, 2), 0.05 * 2**level) for level, (h, w) in enumerate(shapes)]
        anchors = torch.cat([centers, torch.cat(sides)], dim=-1)
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
        tokens = self.linear(self.library.prefix + self.library.tokens, memory * valid)
        tokens = self.norm(self.library.prefix + self.library.tokens_norm, tokens)
        best = self.class_logits(last, tokens).max(-1).values.topk(self.sizes.queries).indices
        logits = torch.log(anchors / (1 - anchors)).masked_fill(~valid, torch.inf)
        return (self.box_deltas(last, tokens) + logits)[best].sigmoid()

    def decode(self, memory: Tensor, boxes: Tensor, shapes: list) -> tuple[Tensor, Tensor]:
        prefix, library = self.library.prefix, self.library
        x = self.weights[f"{library.contents}.weight"]
        for number in range(self.sizes.decoder_layers):
            layer = f"{prefix}decoder.layers.{number}"
            # y, x, width, height
            sines = [naive_sines(boxes[:, i] * 2 * math.pi, len(x[0]) // 2) for i in (1, 0, 2, 3)]
            head = f"{prefix}decoder.ref_point_head"
            names = [f"{head}.{part}" for part in library.reference_layers]
            positions = self.mlp(names, torch.cat(sines, dim=-1))
            found = self.self_attention(f"{layer}.{library.self_attention}", x, positions)
            x = self.norm(f"{layer}.norms.0", x + found)
            attention = f"{layer}.{library.deformable}"
            found = self.deformable(attention, x + positions, boxes, memory, shapes)
            x = self.norm(f"{layer}.norms.1", x + found)
            x = self.feed_forward(layer, 2, x)
            references = torch.log(boxes.clamp(min=1e-3) / (1 - boxes).clamp(min=1e-3))
            boxes = (self.box_deltas(number, x) + references).sigmoid()
        state = self.norm(f"{prefix}decoder.norm", x)
        final = (self.box_deltas(number, state) + references).sigmoid()
        return self.class_logits(number, state), final


def naive_sines(angles: Tensor, width: int, temperature: float = 10000) -> Tensor:
    columns = []
    for index in range(width):
        scaled = angles / temperature ** (2 * (index // 2) / width)
        columns.append(scaled.cos() if index % 2 else scaled.sin())
    return torch.stack(columns, dim=-1)


def naive_centers(height: int, width: int) -> Tensor:
    cells = [
        ((column + 0.5) / width, (row + 0.5) / height)
        for row in range(height)
        for column in range(width)
    ]
    return torch.tensor(cells)


# ---------------------------------------------------------------- tests


def write(name: str, weights: dict[str, Tensor], file: Path) -> None:
    torch.save({"model" if name == "detrex" else "state_dict": weights}, file)


FIVE_SCALES = Sizes(channels=(64, 128, 256, 512), levels=5)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.filterwarnings("ignore:.* are left out:UserWarning")
def test_predictions(name: str, tmp_path: Path) -> None:
    """A converted model predicts what the naive DINO predicts with the library's names."""
    sizes = FIVE_SCALES if "co-detr" in name else Sizes()
    weights, library = weights_of(name, sizes), LIBRARIES[name]
    write(name, weights, tmp_path / "model.pth")
    file, folder = tmp_path / "model.pth", tmp_path / "hub"
    converted = convert_official_checkpoint(file, folder, dilation=False, num_heads=8)
    model, info = type(converted).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info

    pixel_values = batch()[0][:1]
    with torch.no_grad():
        output = model.eval()(pixel_values)
        maps = model.model.backbone(pixel_values)
        logits, boxes = NaiveDino(library, sizes, weights)(maps)
    assert_close(output.logits[0], logits, atol=1e-4, rtol=1e-4)
    assert_close(output.pred_boxes[0], boxes, atol=1e-5, rtol=1e-4)

    labels = model.state_dict()["model.denoising.label_embeddings.weight"]
    assert_close(labels[:-1], weights[f"{library.labels}.weight"], atol=0, rtol=0)
    config = model.config
    assert (config.position_temperature, config.position_offset) == (
        library.temperature,
        library.offset,
    )
    assert not config.shared_heads


@pytest.mark.parametrize("name", ["mmdetection", "detrex", "co-detr"])
@pytest.mark.filterwarnings("ignore:.* are left out:UserWarning")
def test_predictions_with_swin(name: str, tmp_path: Path) -> None:
    """The other published backbone is converted with any library's names."""
    sizes, library = Sizes(channels=(192, 384, 768)), LIBRARIES[name]
    backbone, weights = swin_weights(), named_weights(shapes_of(library, sizes))
    if name == "detrex":
        weights |= {key.replace("backbone.0.", "backbone."): one for key, one in backbone.items()}
    else:
        weights |= as_in_mmdetection(backbone)
    write(name, weights, tmp_path / "dino_swin.pth")
    model = convert_official_checkpoint(tmp_path / "dino_swin.pth", tmp_path / "hub")
    pixel_values = batch()[0][:1]
    with torch.no_grad():
        output = model(pixel_values)
        maps = model.model.backbone(pixel_values)
        logits, boxes = NaiveDino(library, sizes, weights)(maps)
    assert_close(output.logits[0], logits, atol=1e-4, rtol=1e-4)
    assert_close(output.pred_boxes[0], boxes, atol=1e-5, rtol=1e-4)
    found = model.model.backbone.state_dict()
    assert_close(found["conv_encoder.norms.2.bias"], backbone["backbone.0.norm2.bias"])


def real_size_weights(name: str, classes: int) -> dict[str, Tensor]:
    """A value per name, in the shapes of the models trained on COCO."""
    sizes = Sizes((512, 1024, 2048), 4, 256, 8, 2048, 6, 6, 900, classes)
    shapes = shapes_of(LIBRARIES[name], sizes)
    with torch.device("meta"):
        backbone = timm.create_model("resnet50", features_only=True)
    prefix = "backbone.body." if name == "detrex" else "backbone."
    shapes |= {prefix + key: t.shape for key, t in backbone.state_dict().items() if t.ndim}
    values: dict[str, Tensor] = {}
    for number, (key, shape) in enumerate(shapes.items()):
        is_alias = isinstance(shape, str)
        values[key] = values[shape] if is_alias else torch.tensor(float(number)).expand(shape)
    return values


@pytest.mark.parametrize("name", LIBRARIES)
def test_names_are_the_official_ones(name: str, reference_dir: Path) -> None:
    """All names, aliases included, and shapes are those of the official 4-scale model."""
    file = reference_dir / "official" / "dino-r50-4scale" / "manifest.json"
    manifest = json.loads(file.read_text())["tensors"]
    expected = {key: tuple(entry["shape"]) for key, entry in manifest.items()}
    given = real_size_weights(name, classes=91)
    official = rename_other_libraries(given, None).weights
    # Only detrex names the heads twice, as the official code does.
    if name != "detrex":
        expected = {first_name(key, is_shared=False): shape for key, shape in expected.items()}
    assert {key: tuple(tensor.shape) for key, tensor in official.items()} == expected
    by_value = {tensor.flatten()[0].item() for tensor in official.values()}
    zeros = 0 if LIBRARIES[name].biased else 4  # biases of the neck
    names = {first_name(key, is_shared=False) for key in official}
    assert len(by_value - {0.0}) >= len(names) - zeros - 1


def test_auxiliary_heads_are_named(tmp_path: Path) -> None:
    """One message names the parts of Co-DETR that are left out."""
    with pytest.warns(UserWarning, match="are left out") as caught:
        rename_other_libraries(weights_of("co-detr", FIVE_SCALES), None)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(
        "bbox_head, query_head.downsample, query_head.transformer.aux_pos_trans, "
        "query_head.transformer.aux_pos_trans_norm, roi_head, rpn_head are left out"
    )


def test_co_deformable_detr_is_rejected() -> None:
    """Co-DETR's Deformable DETR, whose queries are mixed, is refused by name."""
    weights = {"query_head.transformer.pos_trans.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="Co-DETR whose queries aren't DINO's"):
        rename_other_libraries(weights, None)


def test_different_aliases_are_rejected() -> None:
    """The heads of detrex's proposals have two names, whose weights must be equal."""
    weights = weights_of("detrex", Sizes())
    weights["transformer.decoder.class_embed.3.bias"] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"two different 'transformer\.enc_out_class_embed\.bias'"):
        rename_other_libraries(weights, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("positional_encoding=dict(\n  num_feats=128, normalize=True, temperature=20)", (20, 0)),
        ("positional_encoding=dict(normalize=True, offset=-0.5)", (10000, -0.5)),
        ("model = dict(type='DINO')", None),
    ],
)
def test_positions_in_a_file(text: str, expected: tuple[float, float] | None) -> None:
    """The configuration in a file states the position encoding."""
    found = position_options({"cfg": text})
    assert tuple(found.values()) == (expected or ())
    assert position_options(None) == {}


def test_other_positions_are_rejected() -> None:
    """Positions that aren't normalized are refused."""
    with pytest.raises(ValueError, match="expected normalize=True"):
        position_options({"config": "positional_encoding=dict(num_feats=128, temperature=20)"})


def test_back_to_the_official_code(tmp_path: Path) -> None:
    """Heads per layer have the official names, of which each has two."""
    file, folder = tmp_path / "model.pth", tmp_path / "hub"
    write("mmdetection", weights_of("mmdetection", Sizes()), file)
    convert_official_checkpoint(file, folder, dilation=False, num_heads=8)
    export_official_checkpoint(folder, file, overwrite=True)
    content = torch.load(file, weights_only=True)
    assert content["args"]["dec_pred_bbox_embed_share"] is False
    for kind in ("class_embed.{}.bias", "bbox_embed.{}.layers.2.bias"):
        first, second = (content["model"][kind.format(layer)] for layer in (0, 1))
        assert not torch.equal(first, second)
        assert torch.equal(content["model"][f"transformer.decoder.{kind.format(1)}"], second)


def test_positions_without_official_code() -> None:
    """The official code has no offset of positions, so detrex's models don't go back."""
    with pytest.raises(ValueError, match=r"doesn't support position_offset -0\.5"):
        official_options(tiny_config("dino_detr", backbone="resnet18", position_offset=-0.5))
    with pytest.raises(ValueError, match="num_denoising_queries is 0"):
        official_options(tiny_config("dino_detr", backbone="resnet18", num_denoising_queries=0))
