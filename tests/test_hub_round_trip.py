"""Files: what transformers saved loads here, what is saved here loads there, and the rest of it."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from .tiny import class_of, padded_batch, tiny_config, tiny_detector


@pytest.fixture
def no_warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], None]:
    """A check that transformers logged nothing worse than information since the test began."""
    transformers.utils.logging.enable_propagation()
    caplog.set_level(logging.WARNING)

    def check() -> None:
        records = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert not records, [record.getMessage() for record in records]

    yield check
    transformers.utils.logging.disable_propagation()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"dilation": True, "backbone": "resnet50"}, {"position_embedding_type": "learned"}],
    ids=["default", "dc5", "learned positions"],
)
def test_saved_here_loads_in_transformers(
    variant: str, changes: dict, tmp_path: Path, no_warnings: Callable[[], None]
) -> None:
    """transformers' own class reads our folder completely, silently and to the same outputs."""
    model = tiny_detector(variant, **changes)
    model.save_pretrained(tmp_path)
    theirs, info = class_of(variant, "ForObjectDetection", transformers).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    pixel_values, pixel_mask = padded_batch()
    output = model(pixel_values, pixel_mask)
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask)
    assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    no_warnings()


@torch.no_grad()
@pytest.mark.parametrize("dilation", [False, True])
def test_saved_by_transformers_loads_here(
    variant: str, dilation: bool, tmp_path: Path, no_warnings: Callable[[], None]
) -> None:
    """What transformers saves loads here completely, silently and to the same outputs."""
    ours = tiny_config(variant, backbone="resnet50" if dilation else "resnet18", dilation=dilation)
    config = class_of(variant, "Config", transformers).from_dict(ours.to_dict())
    torch.manual_seed(0)
    theirs = class_of(variant, "ForObjectDetection", transformers)(config).eval()
    theirs.save_pretrained(tmp_path)
    model, info = class_of(variant, "ForObjectDetection").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    pixel_values, pixel_mask = padded_batch()
    output = model(pixel_values, pixel_mask)
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask)
    assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    no_warnings()


def test_saved_names_are_the_state_dict(variant: str, tmp_path: Path) -> None:
    """No name is changed between memory and file."""
    model = tiny_detector(variant)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())


@torch.no_grad()
def test_sharded_files_and_device_map(variant: str, tmp_path: Path) -> None:
    """Many small shards, a device map and another dtype load to the same weights."""
    model = tiny_detector(variant)
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path, device_map="auto")
    batch = padded_batch()
    assert_close(loaded(*batch).logits.cpu(), model(*batch).logits, atol=1e-4, rtol=0)
    half = class_of(variant, "ForObjectDetection").from_pretrained(
        tmp_path, device_map={"": "cpu"}, dtype=torch.bfloat16
    )
    assert half.dtype == torch.bfloat16


@torch.no_grad()
def test_buffers_outside_the_file_survive(variant: str, tmp_path: Path) -> None:
    """Swin's index tables, which no file holds, are right after `from_pretrained`."""
    model = class_of(variant, "Model")(
        tiny_config(variant, backbone="swin_tiny_patch4_window7_224")
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = class_of(variant, "Model").from_pretrained(tmp_path)
    image = torch.randn(1, 3, 97, 64)
    assert_close(loaded(image).last_hidden_state, model(image).last_hidden_state)


def test_detector_file_loads_into_the_bare_model(variant: str, tmp_path: Path) -> None:
    """DetrModel reads a detector's file; only the heads are left over."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    model, info = class_of(variant, "Model").from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert all("class_labels" in key or "bbox" in key for key in info["unexpected_keys"])
    assert_close(
        model.query_position_embeddings.weight, detector.model.query_position_embeddings.weight
    )


def test_another_number_of_classes(variant: str, tmp_path: Path) -> None:
    """Fine-tuning on other classes draws a new class head like a fresh one and keeps the rest."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    labels = {i: f"thing {i}" for i in range(9)}
    tuned = class_of(variant, "ForObjectDetection").from_pretrained(
        tmp_path, id2label=labels, ignore_mismatched_sizes=True
    )
    classification = tuned.criterion.classification
    assert tuned.class_labels_classifier.weight.shape == (classification.num_logits, 32)
    assert 0.05 < tuned.class_labels_classifier.weight.std() < 0.2
    assert classification.num_labels == 9
    assert_close(tuned.bbox_predictor.layers[0].weight, detector.bbox_predictor.layers[0].weight)


def test_missing_weights_are_initialised(variant: str, tmp_path: Path) -> None:
    """A file without the decoder leaves a usable, paper-like decoder, not random memory."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if ".decoder." not in k}
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    layer = loaded.model.decoder.layers[0]
    bound = (6 / (32 + 64)) ** 0.5
    assert 0.9 * bound < layer.fc1.weight.abs().max() <= bound
    assert layer.self_attn.out_proj.bias.abs().max() == 0
    assert_close(loaded.model.input_projection.weight, detector.model.input_projection.weight)


def test_resized_queries_are_saved(variant: str, tmp_path: Path) -> None:
    """A model with more queries is read back with them."""
    detector = tiny_detector(variant)
    detector.resize_queries(12)
    detector.save_pretrained(tmp_path)
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    assert_close(
        loaded.model.query_position_embeddings.weight,
        detector.model.query_position_embeddings.weight,
    )


def test_pickles_are_refused(variant: str, tmp_path: Path) -> None:
    """A folder with only a pickle isn't loaded, and asking for pickles is an error."""
    detector = tiny_detector(variant)
    detector.config.save_pretrained(tmp_path)
    torch.save(detector.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="safetensors only"):
        class_of(variant, "ForObjectDetection").from_pretrained(tmp_path, use_safetensors=False)


def test_old_norm_counters_are_ignored(
    variant: str, tmp_path: Path, no_warnings: Callable[[], None]
) -> None:
    """`num_batches_tracked`, which some files hold, is no surprise."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    counter = {"model.backbone.conv_encoder.model.bn1.num_batches_tracked": torch.tensor(0)}
    save_file({**load_file(path), **counter}, path, metadata={"format": "pt"})
    _, info = class_of(variant, "ForObjectDetection").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    no_warnings()


def test_auxiliary_loss_warns_before_it_misleads(variant: str, tmp_path: Path) -> None:
    """Saving with auxiliary losses on says what that does to readers with plain transformers."""
    with pytest.warns(UserWarning, match="auxiliary_loss = False"):
        tiny_detector(variant, auxiliary_loss=True).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auxiliary_loss"] is True
