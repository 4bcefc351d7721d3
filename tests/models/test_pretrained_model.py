"""Protects what libraries around the models expect of every one of them."""

import pytest
import torch

from ..tiny import padded_batch, tiny_detector

VARIANTS = [
    ("detr", {}),
    ("conditional_detr", {}),
    ("deformable_detr", {"with_box_refine": True, "two_stage": True}),
]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("variant, changes", VARIANTS)
def test_low_rank_adapters_learn(variant: str, changes: dict) -> None:
    """Protects PEFT: every adapter gets a gradient, nothing else learns, and merging is exact."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["fc1", "fc2"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_detector(variant, **changes), settings).eval()
    pixel_values, pixel_mask = padded_batch()
    logits = model(pixel_values=pixel_values, pixel_mask=pixel_mask).logits
    logits.square().sum().backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns and all("lora_" in name for name in learns)
    gradients = dict(model.named_parameters())
    assert all(gradients[name].grad.abs().max() > 0 for name in learns)
    merged = model.merge_and_unload()
    with torch.no_grad():
        again = merged(pixel_values, pixel_mask).logits
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)
