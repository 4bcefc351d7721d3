"""Tests how a training makes its model and image processor."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import YolosConfig, YolosForObjectDetection

from hf_detr import DetrForObjectDetection, DetrForSegmentation, DetrImageProcessor, read_coco
from hf_detr.training.model_setup import freeze, make_model, make_transform, prepare_model
from hf_detr.training.options import TrainingOptions

from ..some_data import entry, write_coco
from ..tiny import PREFIXES, tiny_config, tiny_detector


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """Two images with the classes car and dog."""
    return read_coco(*write_coco(tmp_path / "data", [entry(1), entry(2, bbox=[1, 2, 3, 4])]))


@pytest.mark.parametrize("variant", PREFIXES)
def test_trained_model_gets_new_classes(variant: str, tmp_path: Path, data: Any) -> None:
    """All but what classes have of their own is as trained; the processor is the model's."""
    trained = tiny_detector(variant)
    trained.save_pretrained(tmp_path)
    DetrImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    model, processor, _ = make_model(str(tmp_path), TrainingOptions(), data)
    assert model.config.id2label == data.id2label == {0: "car", 1: "dog"}
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    before, after = trained.state_dict(), model.state_dict()
    same = {name for name in before if before[name].shape == after[name].shape}
    assert {name for name in before.keys() - same if not re.search("class|label", name)} == set()
    for name in same:
        assert_close(after[name], before[name], atol=0, rtol=0)


def test_trained_segmenter_gets_new_classes(tmp_path: Path, data: Any) -> None:
    """Its detector's class head and the configuration of both change."""
    DetrForSegmentation(tiny_config(encoder_attention_heads=8)).save_pretrained(tmp_path)
    DetrImageProcessor().save_pretrained(tmp_path)
    model, _, new = make_model(str(tmp_path), TrainingOptions(panoptic=True), data)
    assert isinstance(model, DetrForSegmentation) and new == ["car", "dog"]
    assert model.config.id2label == model.detector.config.id2label == data.id2label
    assert model.detector.class_labels_classifier.out_features == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("panoptic", [False, True])
def test_half_precision_is_trained_in_float32(
    panoptic: bool, dtype: torch.dtype, tmp_path: Path, data: Any
) -> None:
    """A model that was saved in half precision is loaded in float32; one in memory is refused."""
    config = tiny_config(encoder_attention_heads=8)
    trained = (DetrForSegmentation if panoptic else DetrForObjectDetection)(config).to(dtype)
    trained.save_pretrained(tmp_path)
    DetrImageProcessor().save_pretrained(tmp_path)
    options = TrainingOptions(panoptic=panoptic)
    model, processor, _ = make_model(str(tmp_path), options, data)
    prepare_model(model, processor, options)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config.dtype == torch.float32
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ValueError, match=rf"in {name}; training needs float32: model\.float\(\);"):
        prepare_model(trained, processor, options)
    prepare_model(trained.float(), processor, options)


@pytest.mark.parametrize("name", ["table-transformer", "model.json", "folder"])
def test_models_without_masks_are_named(
    name: str, tmp_path: Path, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new or trained model of a type without mask head is refused with the types that have it."""
    monkeypatch.chdir(tmp_path)
    Path("model.json").write_text('{"model_type": "table-transformer"}')
    tiny_config("table-transformer").save_pretrained("folder")
    message = f"{name} is a table-transformer model, .* types detr, conditional_detr, deform"
    with pytest.raises(ValueError, match=message):
        make_model(name, TrainingOptions(panoptic=True), data)


def test_new_model_of_a_file(tmp_path: Path, data: Any) -> None:
    """The file has the configuration, the type and the processor's settings."""
    values = tiny_config("conditional_detr").to_diff_dict()
    kept = {"backbone": "test_resnet", "d_model": 64, "num_queries": 7}
    kept |= {name: value for name, value in values.items() if name.startswith(("enc", "dec"))}
    file = tmp_path / "model.json"
    size = {"shortest_edge": 64, "longest_edge": 107}
    kept |= {"dtype": "bfloat16"}  # as in the configuration of a model in half precision
    file.write_text(
        json.dumps({"model_type": "conditional_detr", **kept, "preprocessing": {"size": size}})
    )
    model, processor, _ = make_model(str(file), TrainingOptions(), data)
    assert model.dtype == torch.float32
    assert model.config.model_type == "conditional_detr" and model.config.num_queries == 7
    assert dict(processor.size) == size
    assert type(processor).__name__ == "ConditionalDetrImageProcessor"
    with pytest.raises(ValueError, match="is for a new model; a/b is loaded with its own"):
        make_model("a/b", TrainingOptions(backbone_weights=Path("b.pth")), data)


def test_new_table_transformer(tmp_path: Path, data: Any) -> None:
    """It has the backbone and the image size of its paper, which other sizes keep in proportion."""
    weights = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), weights)
    options = TrainingOptions(backbone_weights=weights, image_size=600, small_data=True)
    model, processor, _ = make_model("table-transformer", options, data)
    assert type(model).__name__ == "TableTransformerForObjectDetection"
    assert model.config.backbone == "resnet18.tv_in1k" and model.config.eos_coefficient == 0.4
    assert dict(processor.size) == {"shortest_edge": 800, "longest_edge": 800}
    prepare_model(model, processor, options)
    assert dict(processor.size) == {"shortest_edge": 600, "longest_edge": 600}


def test_models_of_other_kinds(tmp_path: Path, data: Any) -> None:
    """A detector that isn't one of ours is named, before its methods are missed."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = YolosConfig(**sizes, intermediate_size=8, image_size=[32, 32], patch_size=16)
    YolosForObjectDetection(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="is a 'yolos' model of transformers.* expected a model of"
    ):
        make_model(str(tmp_path), TrainingOptions(), data)


@pytest.mark.parametrize("kind", ["detector", "segmenter"])
def test_thresholds_are_dropped(kind: str) -> None:
    """Training changes the scores that they were chosen for, also of a segmentation model."""
    own = {"id2label": {0: "cat", 1: "dog"}, "num_labels": 2, "class_thresholds": {"cat": 0.2}}
    model = tiny_detector(**own)
    if kind == "segmenter":
        model = DetrForSegmentation(tiny_config(encoder_attention_heads=8, **own))
    prepare_model(model, DetrImageProcessor(), TrainingOptions())
    assert model.config.class_thresholds is None
    assert getattr(model, "detector", model).config.class_thresholds is None


def test_prepared_model(data: Any) -> None:
    """Every decoder layer is trained, and images have the given size."""
    model, processor = tiny_detector(), DetrImageProcessor()
    prepare_model(model, processor, TrainingOptions(image_size=400, query_groups=2))
    assert model.config.auxiliary_loss
    assert dict(processor.size) == {"shortest_edge": 400, "longest_edge": 666}
    assert model.detection_transformer.query_groups.num_groups == 2
    prepare_model(model, processor, TrainingOptions(denoising=30))
    assert model.detection_transformer.query_groups is None
    assert model.detection_transformer.denoising.num_denoising_queries == 30
    transform = make_transform(TrainingOptions(), processor)
    torch.manual_seed(0)
    sizes = {transform(*data[0])[0].shape[-1] for _ in range(20)}
    assert len(sizes) > 3 and max(sizes) <= 666
    fixed = make_transform(TrainingOptions(no_augmentation=True), processor)
    assert {tuple(fixed(*data[0])[0].shape[-2:]) for _ in range(5)} == {(400, 500)}


def test_frozen_parts() -> None:
    """A name freezes all parts that have it; unknown names and empty trainings are refused."""
    model = tiny_detector()
    model.unfreeze_backbone()
    freeze(model, ["backbone", "encoder"])
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and not any("backbone." in name or ".encoder." in name for name in trained)
    with pytest.raises(ValueError, match="--freeze is 'bakbone', but .* has backbone, .*encoder"):
        freeze(model, ["bakbone"])
    with pytest.raises(ValueError, match="--freeze model bbox_predictor .* nothing to train"):
        freeze(model, ["model", "bbox_predictor", "class_labels_classifier"])
