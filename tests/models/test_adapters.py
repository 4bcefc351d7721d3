"""Protects LoRA adapters on the way between transformers' own models and ours."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from hf_detr.models.adapters import check_adapter_weights

from ..tiny import class_of, padded_batch, tiny_detector

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(  # PEFT's own
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)

# transformers' Deformable DETR takes no adapters of PEFT.
TWO_WAY = ("detr", "conditional_detr", "table-transformer")
# In transformers; Conditional DETR's decoder has v_proj too, which is sa_v_proj and ca_v_proj here.
TARGETS = (
    ["fc1", "fc2"],
    ["q_proj", "v_proj"],
    ["o_proj", "out_proj"],
    "all-linear",
    r".*decoder.*\.v_proj",
)


def theirs(variant: str) -> type[PreTrainedModel]:
    """transformers' own detector."""
    name = variant.replace("-", "_")
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    return class_of(variant, "ForObjectDetection", module)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    """Of a batch with padding."""
    pixel_values, pixel_mask = padded_batch()
    return model.eval()(pixel_values=pixel_values, pixel_mask=pixel_mask).logits


def save_adapter(model: PreTrainedModel, folder: Path, **settings: object) -> Tensor:
    """Save a random adapter for a model, and return the logits with it."""
    torch.manual_seed(1)
    options = {"r": 2, "init_lora_weights": False, **settings}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    adapted.save_pretrained(folder / "adapter")
    return logits(adapted)


@pytest.fixture(params=TWO_WAY)
def detector(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedModel:
    """Ours, saved in `base`."""
    model = tiny_detector(request.param)
    model.save_pretrained(tmp_path / "base")
    return model


@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_adapters_of_transformers(
    detector: PreTrainedModel, targets: list[str] | str, tmp_path: Path
) -> None:
    """`load_adapter` gives the same logits, whatever module names the adapter has."""
    peer = theirs(detector.config.model_type).from_pretrained(tmp_path / "base")
    before = logits(detector)
    expected = save_adapter(
        peer, tmp_path, target_modules=targets, modules_to_save=["class_labels_classifier"]
    )
    assert not torch.allclose(before, expected, atol=0.01)
    detector.load_adapter(str(tmp_path / "adapter"))
    assert_close(logits(detector), expected, atol=1e-4, rtol=0)


def test_adapters_are_loaded_with_the_model(detector: PreTrainedModel, tmp_path: Path) -> None:
    """`from_pretrained` of an adapter's folder loads the model that it names, and the adapter."""
    peer = theirs(detector.config.model_type).from_pretrained(tmp_path / "base")
    expected = save_adapter(peer, tmp_path, target_modules=["o_proj", "fc1"])
    loaded = type(detector).from_pretrained(tmp_path / "adapter")
    assert_close(logits(loaded), expected, atol=1e-4, rtol=0)


def test_adapters_of_transformers_by_peft(detector: PreTrainedModel, tmp_path: Path) -> None:
    """`PeftModel.from_pretrained` maps names too, where `target_modules` mean the same modules."""
    peer = theirs(detector.config.model_type).from_pretrained(tmp_path / "base")
    expected = save_adapter(peer, tmp_path, target_modules=["fc1", "fc2"])
    loaded = peft.PeftModel.from_pretrained(detector, tmp_path / "adapter")
    assert_close(logits(loaded), expected, atol=1e-4, rtol=0)


def test_parts_of_adapters_are_refused(tmp_path: Path) -> None:
    """PEFT would drop weights whose modules `target_modules` doesn't name here, without a word."""
    model = tiny_detector("conditional_detr")
    model.save_pretrained(tmp_path / "base")
    peer = theirs("conditional_detr").from_pretrained(tmp_path / "base")
    save_adapter(peer, tmp_path, target_modules=["q_proj", "v_proj"])
    with pytest.raises(ValueError, match=r"ca_v_proj.lora_A.weight.*model.load_adapter\(folder\)"):
        peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    check_adapter_weights(model, ["other.lora_A.weight", "model.unknown.weight"], "model.")


def test_settings_of_single_modules_are_refused(tmp_path: Path) -> None:
    """Patterns under transformers' names would not apply here."""
    model = tiny_detector("detr")
    model.save_pretrained(tmp_path / "base")
    peer = theirs("detr").from_pretrained(tmp_path / "base")
    save_adapter(peer, tmp_path, target_modules=["o_proj", "fc1"], alpha_pattern={"o_proj": 3})
    with pytest.raises(ValueError, match="settings of single modules .*alpha_pattern"):
        model.load_adapter(str(tmp_path / "adapter"))


def test_adapters_of_ours(variant: str, tmp_path: Path) -> None:
    """An adapter loads on the model that it was trained on, and nothing is renamed."""
    model = tiny_detector(variant)
    targets = r".*(encoder|decoder).*\.(v_proj|out_proj|value_proj|fc1)"
    expected = save_adapter(model, tmp_path, target_modules=targets)
    for load in (
        lambda model: model.load_adapter(str(tmp_path / "adapter")) and model,
        lambda model: peft.PeftModel.from_pretrained(model, tmp_path / "adapter"),
    ):
        again = tiny_detector(variant)
        load(again)
        assert_close(logits(again), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize("name", ["second", "model"])
def test_several_adapters(name: str, tmp_path: Path) -> None:
    """A second adapter needs no weights of the first or of the model, whatever its name is."""
    model = tiny_detector("detr")
    expected = save_adapter(model, tmp_path, target_modules=["fc1"])
    again = tiny_detector("detr")
    again.load_adapter(str(tmp_path / "adapter"))
    again.load_adapter(str(tmp_path / "adapter"), adapter_name=name)
    assert_close(logits(again), expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:Found missing adapter keys:UserWarning")  # shared, too
@pytest.mark.parametrize("refine", [False, True])
def test_adapters_of_shared_heads(refine: bool, tmp_path: Path) -> None:
    """Deformable DETR's heads have several names, of which an adapter's file holds one."""
    model = tiny_detector("deformable_detr", with_box_refine=refine)
    expected = save_adapter(model, tmp_path, target_modules="all-linear")
    again = tiny_detector("deformable_detr", with_box_refine=refine)
    again.load_adapter(str(tmp_path / "adapter"))
    assert_close(logits(again), expected, atol=1e-4, rtol=0)


def test_transformers_loads_adapters_of_ours(detector: PreTrainedModel, tmp_path: Path) -> None:
    """Protects `load_adapter` of transformers' own models, for names that both have."""
    expected = save_adapter(detector, tmp_path, target_modules=["fc1", "fc2", "k_proj"])
    peer = theirs(detector.config.model_type).from_pretrained(tmp_path / "base")
    peer.load_adapter(str(tmp_path / "adapter"))
    assert_close(logits(peer), expected, atol=1e-4, rtol=0)


def test_pickled_adapters_are_refused(detector: PreTrainedModel, tmp_path: Path) -> None:
    """As weights of models, adapters are loaded from safetensors only."""
    save_adapter(detector, tmp_path, target_modules=["fc1"])
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(
        tmp_path / "adapter" / "adapter_model.bin"
    )
    with pytest.raises(OSError, match="adapter_model.safetensors"):
        type(detector).from_pretrained(tmp_path / "base").load_adapter(str(tmp_path / "adapter"))
