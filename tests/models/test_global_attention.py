"""Protects DETR's layers with norms before sub-layers: against transformers' Table Transformer."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from hf_detr import TableTransformerForObjectDetection

from ..tiny import NO_DROPOUT, padded_batch, some_labels, tiny_config, tiny_detector

VARIANT = "table-transformer"


def both(**changes: object) -> tuple[nn.Module, nn.Module]:
    """Our model without dropout, and transformers' with the same weights, in training mode."""
    ours = tiny_detector(VARIANT, **NO_DROPOUT, **changes)
    for name, parameter in ours.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.5)
    config = transformers.TableTransformerConfig.from_dict(ours.config.to_dict())
    theirs = transformers.TableTransformerForObjectDetection(config)
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours.train(), theirs.train()


def same_size_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images without padding, relative to which both measure boxes."""
    pixel_values, _ = padded_batch()
    return pixel_values, torch.ones(pixel_values[:, 0].shape, dtype=torch.long)


@pytest.mark.parametrize("eos_coefficient", [0.1, 0.4])
def test_losses_and_gradients(eos_coefficient: float) -> None:
    """Every loss of the last layer, the total, and the gradient of every weight."""
    ours, theirs = both(eos_coefficient=eos_coefficient)
    (pixel_values, pixel_mask), labels = same_size_batch(), some_labels((3, 1))
    output = ours(pixel_values, pixel_mask, labels=labels)
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask, labels=labels)
    assert_close(output.loss, expected.loss, atol=1e-4, rtol=1e-4)
    for name in ("loss_ce", "loss_bbox", "loss_giou", "cardinality_error"):
        assert_close(output.loss_dict[name], expected.loss_dict[name], atol=1e-4, rtol=1e-4)
    output.loss.backward()
    expected.loss.backward()
    gradients = {name: weight.grad for name, weight in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad and name in gradients:
            assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-3, msg=name)
            compared += 1
    assert compared == sum(parameter.requires_grad for parameter in ours.parameters())


def test_weight_of_the_classification_loss() -> None:
    """Table Transformer's configuration has it; DETR's paper has a weight of 1."""
    assert tiny_detector("detr").criterion.weights["loss_ce"] == 1
    assert tiny_detector(VARIANT, ce_loss_coefficient=3).criterion.weights["loss_ce"] == 3


@torch.no_grad()
def test_states() -> None:
    """Memory is normalised, states between layers aren't, and all equal transformers'."""
    ours, theirs = (model.eval() for model in both())
    pixel_values, pixel_mask = padded_batch()
    asked_for = {"output_hidden_states": True, "output_attentions": True}
    output = ours(pixel_values, pixel_mask, **asked_for)
    expected = theirs(pixel_values=pixel_values, pixel_mask=pixel_mask, **asked_for)
    assert_close(output.last_hidden_state, expected.last_hidden_state, atol=1e-4, rtol=0)
    real = output.encoder_attentions[0][:, 0].sum(1) > 0  # attended to; the rest is padding
    memories = output.encoder_last_hidden_state, expected.encoder_last_hidden_state
    states = zip(output.encoder_hidden_states, expected.encoder_hidden_states, strict=True)
    for mine, their in (memories, *states):
        assert_close(mine[real], their[real], atol=1e-4, rtol=1e-4)
    for mine, their in zip(output.cross_attentions, expected.cross_attentions, strict=True):
        assert_close(mine, their, atol=1e-4, rtol=0)


def test_every_layer_is_normalised_once_for_the_heads() -> None:
    """Auxiliary outputs are those of the official code: the next layer gets the raw state.

    transformers gives it the normalised state if `auxiliary_loss` is on, and predicts otherwise.
    """
    ours, _ = both(auxiliary_loss=True)
    (pixel_values, pixel_mask), labels = same_size_batch(), some_labels((3, 1))
    output = ours(pixel_values, pixel_mask, labels=labels, output_hidden_states=True)
    ours.config.auxiliary_loss = False
    assert_close(output.logits, ours(pixel_values, pixel_mask).logits)
    decoder = ours.model.decoder
    for layer, auxiliary in enumerate(output.auxiliary_outputs):
        state = decoder.layernorm(output.decoder_hidden_states[1 + layer])
        assert_close(ours.class_labels_classifier(state), auxiliary["logits"])


@torch.no_grad()
def test_files_of_older_transformers(tmp_path: Path) -> None:
    """`microsoft/table-transformer-detection`: fields of transformers 4 load to the same model."""
    model = tiny_detector(VARIANT, backbone="resnet18", num_queries=15, num_labels=2)
    model.save_pretrained(tmp_path)
    fields = model.config.to_dict()
    for name in ("backbone_config", "transformers_version", "id2label", "label2id"):
        del fields[name]
    fields |= {
        "backbone": "resnet18",
        "use_timm_backbone": True,
        "ce_loss_coefficient": 1,
        "max_position_embeddings": 1024,
        "num_hidden_layers": 2,
        "scale_embedding": False,
        "id2label": {"0": "table", "1": "table rotated"},
        "label2id": {"table": 0, "table rotated": 1},
        "architectures": ["TableTransformerForObjectDetection"],
    }
    config = TableTransformerForObjectDetection.config_class.from_dict(fields)
    assert config.backbone == "resnet18" and config.num_queries == 15 and config.num_labels == 2
    loaded, info = TableTransformerForObjectDetection.from_pretrained(
        tmp_path, config=config, output_loading_info=True
    )
    assert not any(info.values()), info
    assert torch.equal(loaded(*padded_batch()).logits, model(*padded_batch()).logits)


def test_normalize_before_is_no_option() -> None:
    """Only the model type tells where norms are: no file can say otherwise."""
    assert tiny_config(VARIANT).normalize_before and not tiny_config("detr").normalize_before
    assert "normalize_before" not in tiny_config(VARIANT).to_dict()
