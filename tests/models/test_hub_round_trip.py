"""Files: what transformers saved loads here, what is saved here loads there, and the rest of it."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from ..tiny import IN_TRANSFORMERS, class_of, padded_batch, tiny_config, tiny_detector


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


def assert_same_predictions(
    ours: nn.Module, theirs: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Equal logits (1e-4) and boxes (1e-5) of a batch of pixel values and their mask."""
    pixel_values, pixel_mask = batch
    output = ours(pixel_values, pixel_mask)
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask)
    assert_close(output.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(output.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
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
    assert_same_predictions(model, theirs, padded_batch())
    no_warnings()


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"num_feature_levels": 1},
        {"num_feature_levels": 1, "backbone": "resnet50", "dilation": True},
        {"with_box_refine": True},
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 7},
    ],
    ids=["single scale", "single scale dc5", "refine", "two stages"],
)
def test_every_deformable_configuration_loads_in_transformers(
    options: dict, tmp_path: Path
) -> None:
    """Each published configuration is read there to the same outputs."""
    model = tiny_detector("deformable_detr", **options)
    model.save_pretrained(tmp_path)
    theirs, info = transformers.DeformableDetrForObjectDetection.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_predictions(model, theirs, padded_batch(2, 128, 160))


@torch.no_grad()
@pytest.mark.parametrize("decoder_layers", [2, 3])
@pytest.mark.parametrize("two_stage", [False, True])
def test_refining_models_saved_by_transformers_load_here(
    two_stage: bool, decoder_layers: int, tmp_path: Path
) -> None:
    """Files with one class head for all layers give every layer that one, to learn from."""
    ours = tiny_config(
        "deformable_detr",
        with_box_refine=True,
        two_stage=two_stage,
        two_stage_num_proposals=7,
        decoder_layers=decoder_layers,
    )
    config = transformers.DeformableDetrConfig.from_dict(ours.to_dict())
    theirs = transformers.DeformableDetrForObjectDetection(config).eval()
    theirs.save_pretrained(tmp_path)
    model, info = class_of("deformable_detr", "ForObjectDetection").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_predictions(model, theirs, padded_batch())
    heads = list(model.class_embed)
    assert len({head.weight.data_ptr() for head in heads}) == len(heads)
    model.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    batch = padded_batch()
    assert_close(again(*batch).logits, model(*batch).logits, atol=0, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"decoder_layers": 1}, {"with_box_refine": True}, {"two_stage": True}],
    ids=["shared", "one layer", "refine", "two stages"],
)
def test_heads_that_no_file_holds(options: dict, tmp_path: Path) -> None:
    """A bare model's file gives a detector whose heads are drawn, told, and on the CPU."""
    if options.get("two_stage"):
        options = {"with_box_refine": True, **options}
    detector = tiny_detector("deformable_detr", **options)
    detector.model.save_pretrained(tmp_path)
    loaded, info = type(detector).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(parameter.is_meta for parameter in loaded.parameters())
    if not options.get("two_stage"):  # whose bare model holds the heads
        assert {"class_embed.0.weight", "class_embed.0.bias"} <= set(info["missing_keys"])
        for head in loaded.class_embed:
            assert_close(head.bias, torch.full_like(head.bias, -math.log(99)), atol=1e-4, rtol=0)
    shared = not options.get("with_box_refine")
    assert (len({id(head) for head in loaded.class_embed}) == 1) == (
        shared or len(loaded.class_embed) == 1
    )
    assert loaded(*padded_batch()).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("variant", IN_TRANSFORMERS)
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
    assert_same_predictions(model, theirs, padded_batch())
    no_warnings()


def test_saved_names_are_the_state_dict(variant: str, tmp_path: Path) -> None:
    """No name is changed between memory and file; of tied names, one is in the file."""
    model = tiny_detector(variant)
    model.save_pretrained(tmp_path)
    tied = model.get_expanded_tied_weights_keys() if model._tied_weights_keys else {}
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict()) - set(tied)


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
    assert all("class_" in key or "bbox" in key for key in info["unexpected_keys"])
    assert_close(model.learned_queries().weight, detector.model.learned_queries().weight)


def test_another_number_of_classes(variant: str, tmp_path: Path) -> None:
    """Fine-tuning on other classes draws a new class head like a fresh one and keeps the rest."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    labels = {i: f"thing {i}" for i in range(9)}
    tuned = class_of(variant, "ForObjectDetection").from_pretrained(
        tmp_path, id2label=labels, ignore_mismatched_sizes=True
    )
    classification = tuned.criterion.classification
    assert classification.num_labels == 9
    (head,) = {
        module
        for name, module in tuned.named_modules()
        if name.startswith(("class_labels_classifier", "class_embed")) and hasattr(module, "bias")
    }
    assert head.weight.shape == (classification.num_logits, 64)
    assert 0.03 < head.weight.std() < 0.2
    for ours, theirs in zip(
        tuned.model.decoder.parameters(), detector.model.decoder.parameters(), strict=True
    ):
        assert_close(ours, theirs)


def test_missing_weights_are_initialised(variant: str, tmp_path: Path) -> None:
    """A file without the decoder leaves a usable, paper-like decoder, not random memory."""
    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {k: v for k, v in load_file(path).items() if ".decoder." not in k}
    save_file(tensors, path, metadata={"format": "pt"})
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    layer = loaded.model.decoder.layers[0]
    bound = (6 / (64 + 64)) ** 0.5
    assert 0.9 * bound < layer.fc1.weight.abs().max() <= bound
    assert layer.self_attn.out_proj.bias.abs().max() == 0
    assert_close(
        loaded.model.encoder.layers[0].fc1.weight, detector.model.encoder.layers[0].fc1.weight
    )


def test_resized_queries_are_saved(variant: str, tmp_path: Path) -> None:
    """A model with more queries is read back with them."""
    detector = tiny_detector(variant)
    detector.resize_queries(12)
    detector.save_pretrained(tmp_path)
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path)
    assert_close(loaded.model.learned_queries().weight, detector.model.learned_queries().weight)


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


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"device_map": {"": "cpu"}}])
def test_loaded_backbone_is_frozen_as_a_fresh_one(
    variant: str, options: dict, tmp_path: Path
) -> None:
    """Stem and first stage don't train after `from_pretrained` either."""

    def frozen(model: torch.nn.Module) -> list[str]:
        return [name for name, p in model.named_parameters() if not p.requires_grad]

    detector = tiny_detector(variant)
    detector.save_pretrained(tmp_path)
    loaded = class_of(variant, "ForObjectDetection").from_pretrained(tmp_path, **options)
    assert frozen(loaded) == frozen(detector) != []


def test_a_pickle_named_by_an_index_is_refused(tmp_path: Path) -> None:
    """An index of shards can't smuggle in a file that would be unpickled."""
    detector = tiny_detector()
    detector.config.save_pretrained(tmp_path)
    torch.save(detector.state_dict(), tmp_path / "evil.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(detector.state_dict(), "evil.bin")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"evil.bin.*is not a .safetensors file"):
        type(detector).from_pretrained(tmp_path)


@pytest.mark.parametrize("held", ["all names", "heads", "decoder's heads", "index 0"])
@pytest.mark.parametrize("options", [{}, {"with_box_refine": True}, {"two_stage": True}])
def test_shared_heads_in_every_published_form(held: str, options: dict, tmp_path: Path) -> None:
    """Files with all names of shared heads, or one name of each, load to the same model."""
    if options.get("two_stage"):
        options = {"with_box_refine": True, **options}
    detector = tiny_detector("deformable_detr", **options)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    detector.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    written = set(load_file(path))

    def keep(name: str) -> bool:
        head = name.startswith(("class_embed", "bbox_embed"))
        if held == "all names":
            return True
        if held == "index 0":
            return not head or bool(options) or name.split(".")[1] == "0"
        in_decoder = f"model.decoder.{name}" in detector.state_dict()
        if held == "decoder's heads":
            return not (head and in_decoder)
        return not name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed"))

    tensors = {k: v.clone() for k, v in detector.state_dict().items() if keep(k)}
    save_file(tensors, path, metadata={"format": "pt"})
    loaded, info = type(detector).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for name, tensor in detector.state_dict().items():
        assert_close(loaded.state_dict()[name], tensor, msg=name)
    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == written
