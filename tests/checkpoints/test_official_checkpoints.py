"""Tests the conversion of official files to Hub folders and back."""

import argparse
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedModel

import hf_detr
from hf_detr import convert_official_checkpoint, export_official_checkpoint
from hf_detr.checkpoints.checkpoint_names import official_name
from hf_detr.checkpoints.official_checkpoints import (
    make_converted_card,
    matches_digest_in_name,
    model_from_weights,
)
from hf_detr.checkpoints.official_configuration import dilation_and_heads, recognize
from hf_detr.checkpoints.published_checkpoints import make_published_card, published_checkpoints
from hf_detr.models.variants import VARIANTS

from ..tiny import class_of, tiny_config, tiny_detector

REFINE = {"with_box_refine": True}
TWO_STAGE = {**REFINE, "two_stage": True, "two_stage_num_proposals": 9}
MODELS = {
    "detr": ("detr", {}),
    "detr dc5": ("detr", {"dilation": True, "position_embedding_type": "learned"}),
    "panoptic": ("panoptic", {"class_cost": 3, "dropout": 0.25}),
    "conditional": ("conditional_detr", {"num_labels": 91, "focal_alpha": 0.5}),
    "deformable": ("deformable_detr", {"encoder_n_points": 2, "decoder_n_points": 3}),
    "single scale": ("deformable_detr", {"num_feature_levels": 1, "dilation": True}),
    "five levels": ("deformable_detr", {"num_feature_levels": 5}),
    "refine": ("deformable_detr", REFINE),
    "two stages": ("deformable_detr", TWO_STAGE),
    "dino": ("dino_detr", {"num_labels": 91, "position_temperature": 30, "box_noise_scale": 1}),
    "dino of five scales": ("dino_detr", {"num_feature_levels": 5}),
    "dino of separate heads": ("dino_detr", {"shared_heads": False}),
    "tables": ("table-transformer", {"eos_coefficient": 0.4, "position_embedding_type": "learned"}),
}


def tiny(kind: str) -> PreTrainedModel:
    """A small model with the smallest ResNet that the official code supports."""
    variant, changes = MODELS[kind]
    changes = {"backbone": "resnet18", **changes}
    if variant != "panoptic":
        return tiny_detector(variant, **changes)
    torch.manual_seed(0)
    # The smallest number of channels and heads that the mask head supports.
    config = tiny_config(
        d_model=128, encoder_attention_heads=8, decoder_attention_heads=8, **changes
    )
    return hf_detr.DetrForSegmentation(config).eval()


class Official:
    """The folder of a small model and its official file, made once for all tests."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder / "original"
        self.file = folder / "official.pth"
        self.model = tiny(kind)
        self.model.save_pretrained(self.folder)
        export_official_checkpoint(self.folder, self.file)

    @property
    def content(self) -> dict[str, Any]:
        return torch.load(self.file, weights_only=True, mmap=True)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Official]:
    """The official file of a kind of model."""
    return functools.cache(lambda kind: Official(kind, tmp_path_factory.mktemp("official")))


def assert_same_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name]), name


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("kind", MODELS)
def test_round_trip(kind: str, official: Callable[[str], Official], tmp_path: Path) -> None:
    """Hub → official → Hub → official keeps weights bit for bit, and the configuration."""
    one = official(kind)
    unknown = {} if "args" in one.content else {"dilation": False, "num_heads": 4}
    converted = convert_official_checkpoint(one.file, tmp_path / "hub", **unknown)
    loaded, info = type(one.model).from_pretrained(tmp_path / "hub", output_loading_info=True)
    assert not any(info.values()), info
    assert_same_weights(converted.state_dict(), one.model.state_dict())
    assert_same_weights(loaded.state_dict(), one.model.state_dict())

    config, expected = loaded.config.to_dict(), one.model.config.to_dict()
    # The official code has one dropout for all three, and no names of classes.
    for ignored in ("attention_dropout", "activation_dropout", "id2label", "label2id"):
        del config[ignored], expected[ignored]
    if kind == "two stages":
        assert config.pop("num_queries") == 300 and expected.pop("num_queries") == 7
    assert config == {**expected, "_name_or_path": config["_name_or_path"]}

    export_official_checkpoint(tmp_path / "hub", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True, mmap=True)
    if unknown:
        assert_same_weights(again, one.content)
    else:
        assert_same_weights(again["model"], one.content["model"])
        assert again["args"] == one.content["args"]


@pytest.mark.parametrize("kind", ["panoptic", "conditional", "refine"])
def test_predictions(kind: str, official: Callable[[str], Official], tmp_path: Path) -> None:
    """The converted model predicts the same, and the image processor has the right class."""
    one = official(kind)
    convert_official_checkpoint(one.file, tmp_path / "hub")
    loaded = type(one.model).from_pretrained(tmp_path / "hub")
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, expected = loaded(images), one.model(images)
    for name in {"logits", "pred_boxes", "pred_masks"} & set(expected):
        assert torch.equal(output[name], expected[name]), name
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hub")
    variant = "detr" if kind == "panoptic" else MODELS[kind][0]
    assert type(processor) is class_of(variant, "ImageProcessor")
    assert processor.format == ("coco_panoptic" if kind == "panoptic" else "coco_detection")


def test_half_precision(official: Callable[[str], Official]) -> None:
    """Half precision is kept; several dtypes are rejected."""
    content = official("detr").content
    half = {name: tensor.half() for name, tensor in content["model"].items()}
    model = model_from_weights(half, content["args"], False, 4)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
    mixed = half | {"query_embed.weight": content["model"]["query_embed.weight"]}
    with pytest.raises(ValueError, match=r"dtypes.*float16.*float32.*expected a single"):
        model_from_weights(mixed, content["args"], False, 4)


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("model_type", "hub", "official"),
    [
        ("detr", "model.backbone.conv_encoder.model.bn1.bias", ("backbone.0.body.bn1.bias", None)),
        ("detr", "model.query_position_embeddings.weight", ("query_embed.weight", None)),
        (
            "detr",
            "model.encoder.layers.3.self_attn.v_proj.bias",
            ("transformer.encoder.layers.3.self_attn.in_proj_bias", 2),
        ),
        (
            "detr",
            "detr.model.decoder.layers.1.encoder_attn_layer_norm.weight",
            ("detr.transformer.decoder.layers.1.norm2.weight", None),
        ),
        ("detr", "mask_head.lay1.weight", ("mask_head.lay1.weight", None)),
        (
            "conditional_detr",
            "model.decoder.layers.0.sa_v_proj.weight",
            ("transformer.decoder.layers.0.sa_v_proj.weight", None),
        ),
        (
            "conditional_detr",
            "model.decoder.layers.0.encoder_attn.out_proj.weight",
            ("transformer.decoder.layers.0.cross_attn.out_proj.weight", None),
        ),
        (
            "deformable_detr",
            "model.decoder.layers.1.encoder_attn_layer_norm.weight",
            ("transformer.decoder.layers.1.norm1.weight", None),
        ),
        ("deformable_detr", "model.level_embed", ("transformer.level_embed", None)),
        ("deformable_detr", "model.input_proj.0.1.bias", ("input_proj.0.1.bias", None)),
    ],
)
def test_names(model_type: str, hub: str, official: tuple[str, int | None]) -> None:
    """Official names of some weights."""
    assert official_name(hub, model_type) == official


def test_all_names(reference_dir: Path) -> None:
    """Official names of all weights of the published models, including rows of fused matrices."""
    variants = {"detr": "detr", "conditional": "conditional_detr", "deformable": "deformable_detr"}
    keymaps = sorted((reference_dir / "keymaps").glob("*.json"))
    assert len(keymaps) == 11
    for path in keymaps:
        model_type = variants[path.stem.split("-")[0]]
        for hub, expected in json.loads(path.read_text()).items():
            official, part = official_name(hub, model_type)
            rows = official if part is None else [official, 256 * part, 256 * (part + 1)]
            assert rows == expected, hub


@pytest.mark.parametrize(
    ("kind", "is_kept"),
    [
        ("deformable", lambda name: not any(f"_embed.{i}." in name for i in (1, 2))),
        ("refine", lambda name: "decoder.bbox_embed" not in name),
        ("refine", lambda name: not name.startswith("bbox_embed")),
        ("two stages", lambda name: "decoder.class" not in name and "decoder.bbox" not in name),
        ("two stages", lambda name: not name.startswith(("bbox_embed", "class_embed"))),
    ],
)
def test_heads_under_fewer_names(
    kind: str, is_kept: Callable[[str], bool], official: Callable[[str], Official]
) -> None:
    """A head with several names may be in the file under only one of them."""
    one = official(kind)
    weights = one.content["model"]
    kept = {name: tensor for name, tensor in weights.items() if is_kept(name)}
    assert len(kept) < len(weights)
    model = model_from_weights(kept, one.content["args"], False, 4)
    assert_same_weights(model.state_dict(), one.model.state_dict())


def test_contradicting_names_of_a_head(official: Callable[[str], Official]) -> None:
    """A file with different weights under two names of one head is rejected."""
    content = official("refine").content
    other = {"transformer.decoder.bbox_embed.1.layers.2.bias": torch.ones(4)}
    with pytest.raises(ValueError, match=r"bbox_embed\.1\.layers\.2\.bias.*differ"):
        model_from_weights(content["model"] | other, content["args"], False, 4)


# ---------------------------------------------------------------- every weight is accounted for


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_proj.bias": None}, r"lacks: input_proj\.bias\."),
        ({"dn_embed.weight": torch.ones(2)}, r"has unknown: dn_embed\.weight\."),
        (
            {"bbox_embed.layers.0.bias": torch.ones(3)},
            r"wrong shapes: bbox_embed\.layers\.0\.bias \(3,\), expected \(64,\)",
        ),
        (
            {"transformer.encoder.layers.1.self_attn.in_proj_bias": torch.ones(64)},
            r"in_proj_bias \(64,\), expected \(192,\)\.",
        ),
        (
            {"transformer.encoder.layers.9.norm1.bias": torch.ones(64)},
            r"lacks: transformer\.encoder\.layers\.2\..* more; has unknown: .*layers\.9\.norm1",
        ),
        ({"class_embed.weight": None}, "lacks 'class_embed.weight'"),
        ({"class_embed.weight": torch.ones(())}, "has fewer dimensions"),
        ({"class_embed.weight": torch.ones(1, 64)}, "num_labels is 0"),
        ({"query_embed.weight": torch.ones(0, 64)}, "are invalid.*num_queries is 0"),
        ({"backbone.0.body.layer4.7.bn1.bias": torch.ones(512)}, r"\(2, 2, 2, 3\) blocks"),
        ({"query_embed.weight": torch.ones(7, 64).int()}, "dtypes.*int32"),
        ({"mask_head.lay1.weight": torch.ones(1)}, "not a model of facebookresearch/detr"),
    ],
)
def test_wrong_weights(
    changes: dict[str, Any], message: str, official: Callable[[str], Official]
) -> None:
    """Missing and unknown weights and wrong shapes are named in the error."""
    content = official("detr").content
    weights = {k: v for k, v in (content["model"] | changes).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        model_from_weights(weights, content["args"], False, 4)


@pytest.mark.parametrize("variant", [v for v, row in VARIANTS.items() if not row.official_masks])
def test_mask_heads_without_official_code_are_named(variant: str) -> None:
    """The message says which models have one."""
    names = {f"detr.transformer.{mark}": torch.ones(1) for mark in VARIANTS[variant].official_marks}
    message = f"is a {variant} model with a mask head, .* with masks are of the type detr"
    with pytest.raises(ValueError, match=message):
        recognize({**names, "mask_head.lay1.weight": torch.ones(1)})


def test_other_models(tmp_path: Path) -> None:
    """Files of other models are rejected, and nothing is written."""
    file = tmp_path / "resnet.pth"
    torch.save({"fc.weight": torch.ones(2)}, file)
    with pytest.raises(ValueError, match=r"not a model of .*first names: fc\.weight"):
        convert_official_checkpoint(file, tmp_path / "hub")  # without asking for options first
    torch.save({"model": [1, 2]}, file)
    with pytest.raises(ValueError, match="has a list as 'model'"):
        convert_official_checkpoint(file, tmp_path / "hub", dilation=False, num_heads=8)
    assert list(tmp_path.iterdir()) == [file]


def test_file_formats(official: Callable[[str], Official], tmp_path: Path) -> None:
    """State dicts and training checkpoints are read, also those of torch's parallel wrappers."""
    one = official("detr")
    weights, options = one.content["model"], one.content["args"]
    counted = {"backbone.0.body.bn1.num_batches_tracked": torch.tensor(7), **weights}
    file = tmp_path / "checkpoint0049.pth"
    torch.save(counted, file)
    bare = convert_official_checkpoint(file, tmp_path / "bare", dilation=False, num_heads=4)
    assert_same_weights(bare.state_dict(), one.model.state_dict())

    namespace = argparse.Namespace(**options, device="cuda", lr_drop=200)
    wrapped = {f"module.{name}": tensor for name, tensor in counted.items()}
    training = {"model": wrapped, "optimizer": {"state": {}}, "epoch": 49, "args": namespace}
    torch.save(training, file)
    trained = convert_official_checkpoint(file, tmp_path / "trained")
    assert_same_weights(trained.state_dict(), one.model.state_dict())
    assert trained.config.encoder_attention_heads == 4


def test_table_transformer_files(official: Callable[[str], Official], tmp_path: Path) -> None:
    """Microsoft's trainings, and DETR's with --pre_norm, are told from DETR by encoder.norm."""
    one = official("tables")
    assert "transformer.encoder.norm.weight" in one.content
    file = tmp_path / "model_20.pth"
    training = {"epoch": 19, "model_state_dict": one.content, "optimizer_state_dict": {}}
    torch.save(training, file)
    trained = convert_official_checkpoint(file, tmp_path / "a", dilation=False, num_heads=4)
    assert type(trained) is hf_detr.TableTransformerForObjectDetection
    assert_same_weights(trained.state_dict(), one.model.state_dict())

    options = {"pre_norm": True, "nheads": 4, "dilation": False, "eos_coef": 0.1, "ce_loss_coef": 2}
    torch.save({"model": one.content, "args": argparse.Namespace(**options)}, file)
    converted = convert_official_checkpoint(file, tmp_path / "b")
    assert converted.config.eos_coefficient == 0.1 and converted.config.ce_loss_coefficient == 2
    processor = AutoImageProcessor.from_pretrained(tmp_path / "b")
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 800}


@pytest.mark.parametrize(
    ("file", "num_queries", "num_labels", "longest"),
    [
        ("pubtables1m_detection_detr_r18.pth", 15, 2, 800),
        ("pubtables1m_structure_detr_r18.pth", 125, 6, 1000),
        ("TATR-v1.1-All-msft.pth", 125, 6, 1000),
    ],
)
def test_published_tables(
    file: str, num_queries: int, num_labels: int, longest: int, tmp_path: Path
) -> None:
    """Microsoft's published files need no options: their classes and image sizes are known."""
    sizes = {"num_queries": num_queries, "num_labels": num_labels, "encoder_attention_heads": 8}
    heads = {"decoder_attention_heads": 8}
    model = tiny_detector("table-transformer", backbone="resnet18", **sizes, **heads)
    model.save_pretrained(tmp_path / "original")
    export_official_checkpoint(tmp_path / "original", tmp_path / file)
    convert_official_checkpoint(tmp_path / file, tmp_path / "hub")
    loaded = hf_detr.TableTransformerForObjectDetection.from_pretrained(tmp_path / "hub")
    assert_same_weights(loaded.state_dict(), model.state_dict())
    assert loaded.config.num_queries == num_queries and loaded.config.id2label[0] == "table"
    assert len(loaded.config.id2label) == num_labels
    processor = AutoImageProcessor.from_pretrained(tmp_path / "hub")
    assert dict(processor.size) == {"shortest_edge": longest, "longest_edge": longest}


# ---------------------------------------------------------------- dilation and heads


def test_published_names() -> None:
    """Names of all published files are recognized."""
    published = published_checkpoints()
    assert len(published) == 31
    for one in published:
        expected = (one.options.get("dilation", False), 8)
        assert dilation_and_heads({}, one.file, None, None) == expected, one.file


def test_published_results_are_of_the_same_file(tmp_path: Path) -> None:
    """Published results aren't in the card of another file with a published file's name."""
    for checkpoint in published_checkpoints():
        file = tmp_path / checkpoint.file
        file.write_bytes(b"other weights")
        config = checkpoint.make_config()
        card = make_converted_card(config, file, "mine")
        if matches_digest_in_name(file):  # there is no digest in the name
            assert str(card) == str(make_published_card(checkpoint, config, "mine"))
            assert bool(card.data.eval_results) == bool(checkpoint.metrics)
            assert card.data.license in ("apache-2.0", "mit")
            config.num_labels = 3
            card = make_converted_card(config, file, "mine")
        assert card.data.eval_results is None and card.data.license is None
        assert f"`{checkpoint.file}`" in card.text and "mine" in card.text


def test_digests_in_names(tmp_path: Path) -> None:
    """torch.hub's names end with the first eight digits of the file's SHA-256."""
    content = b"the weights that the authors published"
    digest = hashlib.sha256(content).hexdigest()[:8]
    for name, expected in ((f"detr-{digest}.pth", True), ("detr-01234567.pth", False)):
        (tmp_path / name).write_bytes(content)
        assert matches_digest_in_name(tmp_path / name) == expected
    assert matches_digest_in_name(tmp_path / "r50_deformable_detr-checkpoint.pth")


def test_precedence() -> None:
    """Arguments override options in the file, and these override the file's name."""
    options = {"dilation": False, "nheads": 4}
    assert dilation_and_heads(options, "detr-r50-dc5.pth", None, None) == (False, 4)
    assert dilation_and_heads(options, "detr-r50-dc5.pth", True, 2) == (True, 2)
    assert dilation_and_heads({}, "checkpoint.pth", False, 8) == (False, 8)


@pytest.mark.parametrize("name", ["checkpoint.pth", "r500.pth", "tr50.pth", "best.pth"])
def test_unknown_dilation_and_heads(name: str) -> None:
    """Unknown values raise: a wrong guess would only lower the accuracy."""
    with pytest.raises(ValueError, match=r"--dilation or --no-dilation, and --num-heads"):
        dilation_and_heads({}, name, None, 8)
    with pytest.raises(ValueError, match="Pass dilation=True or False and num_heads"):
        dilation_and_heads({}, name, False, None)


def test_other_backbones_are_refused(official: Callable[[str], Official]) -> None:
    """Backbones that can't be converted are named instead of missing weights of a ResNet."""
    weights = official("dino").content["model"]
    resnet = [name for name in weights if name.startswith("backbone.")]
    weights |= {name.replace(".body.", ".stages."): weights.pop(name) for name in resnet}
    with pytest.raises(ValueError, match=r"isn't a ResNet .* or a Swin Trans.*backbone\.0\.stages"):
        model_from_weights(weights, {}, False, 4)


def test_temperatures_of_positions(official: Callable[[str], Official]) -> None:
    """DINO's code has two; they are written, read, and have to be the same."""
    one = official("dino")
    weights, options = one.content["model"], one.content["args"]
    assert options["pe_temperatureH"] == options["pe_temperatureW"] == 30
    assert model_from_weights(weights, options, False, 4).config.position_temperature == 30
    with pytest.raises(ValueError, match=r"pe_temperatureW are \[30, 20\]; expected the same"):
        model_from_weights(weights, {**options, "pe_temperatureW": 20}, False, 4)


@pytest.mark.parametrize("heads", [0, -8, True, 8.0, "8"])
def test_invalid_heads(heads: Any) -> None:
    """Invalid numbers of heads in a file are rejected."""
    with pytest.raises(ValueError, match="num_heads is .*positive integer"):
        dilation_and_heads({"nheads": heads}, "detr-r50.pth", None, None)


def test_heads_that_do_not_fit(official: Callable[[str], Official]) -> None:
    """Sampling points and d_model must be divisible by the number of heads."""
    weights = official("deformable").content["model"]
    with pytest.raises(
        ValueError, match="32 attention weights per query; expected a multiple of 5 heads x 4"
    ):
        model_from_weights(weights, {}, False, 5)
    weights = official("two stages").content["model"]
    with pytest.raises(ValueError, match="are invalid.*two_stage_num_proposals is -5"):
        model_from_weights(weights, {"num_queries": -5}, False, 4)
    weights = official("detr").content["model"]
    with pytest.raises(ValueError, match="are invalid.*multiple of encoder_attention_heads"):
        model_from_weights(weights, {}, False, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pre_norm": True}, "--pre_norm.* a detr model doesn't support"),
        ({"position_embedding_scale": 10.0}, "position_embedding_scale is 10.0"),
        ({"dropout": 1.5}, "are invalid.*dropout is 1.5"),
        ({"eos_coef": "much"}, "are invalid.*eos_coefficient"),
    ],
)
def test_unsupported_options(
    options: dict[str, Any], message: str, official: Callable[[str], Official]
) -> None:
    """Unsupported and invalid options are rejected."""
    with pytest.raises(ValueError, match=message):
        model_from_weights(official("detr").content["model"], options, False, 4)


def test_labels(official: Callable[[str], Official]) -> None:
    """Class names: the argument's, else COCO's for as many classes, else LABEL_i."""
    weights = official("conditional").content["model"]
    assert model_from_weights(weights, {}, False, 4).config.id2label[90] == "toothbrush"
    names = {label: f"class {label}" for label in range(91)}
    config = model_from_weights(weights, {}, False, 4, names).config
    assert config.id2label == names and config.label2id["class 7"] == 7
    with pytest.raises(
        ValueError, match="classes 0 to 90 of the checkpoint; got 1 names, from 1 to 1"
    ):
        model_from_weights(weights, {}, False, 4, {1: "cat"})
    config = model_from_weights(official("detr").content["model"], {}, False, 4).config
    assert config.id2label[4] == "LABEL_4" and config.num_labels == 5


# ---------------------------------------------------------------- models the official code lacks


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("detr", {"backbone": "test_resnet"}, "doesn't support the backbone 'test_resnet'"),
        ("detr", {"decoder_ffn_dim": 32}, "encoders and decoders with different"),
        ("detr", {"activation_function": "gelu"}, "activation_function 'gelu'"),
        ("deformable_detr", {"num_feature_levels": 2}, "2 feature levels"),
        ("detr", {"backbone_kwargs": {"out_indices": [3]}}, r"maps \[3\] instead of \[4\]"),
        (
            "deformable_detr",
            {"num_feature_levels": 4, "backbone_kwargs": {"out_indices": [1, 2, 3]}},
            r"maps \[1, 2, 3\] instead of \[2, 3, 4\]",
        ),
    ],
)
def test_no_official_model(variant: str, changes: dict, message: str, tmp_path: Path) -> None:
    """Models that the official code doesn't support aren't exported."""
    model = tiny_detector(variant, **{"backbone": "resnet18", **changes})
    model.save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match=message):
        export_official_checkpoint(tmp_path / "hub", tmp_path / "official.pth")
    assert not (tmp_path / "official.pth").exists()


def test_no_official_class(tmp_path: Path) -> None:
    """Other classes and folders without a model are rejected."""
    config = tiny_config("conditional_detr", d_model=128, encoder_attention_heads=8)
    hf_detr.ConditionalDetrForSegmentation(config).save_pretrained(tmp_path / "masks")
    with pytest.raises(ValueError, match=r"\['ConditionalDetrForSegmentation'\]; expected one of"):
        export_official_checkpoint(tmp_path / "masks", tmp_path / "official.pth")
    hf_detr.DetrModel(tiny_config()).save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"\['DetrModel'\]; expected one of"):
        export_official_checkpoint(tmp_path / "bare", tmp_path / "official.pth")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        export_official_checkpoint(tmp_path, tmp_path / "official.pth")


def test_incomplete_folders(official: Callable[[str], Official], tmp_path: Path) -> None:
    """Folders with missing weights are rejected."""
    shutil.copytree(official("detr").folder, tmp_path / "hub")
    weights = load_file(tmp_path / "hub" / "model.safetensors")
    del weights["bbox_predictor.layers.0.bias"]
    save_file(weights, tmp_path / "hub" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"don't match its configuration.*missing.*bbox_predictor\.layers\.0"
    ):
        export_official_checkpoint(tmp_path / "hub", tmp_path / "official.pth")
