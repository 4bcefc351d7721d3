"""The skeleton: inputs, outputs, dtypes, training switches, compiling and exporting."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from hf_detr.layers.feature_pyramid import build_pyramid
from hf_detr.layers.position_encoding import SinePositionEncoding
from hf_detr.models.outputs import ObjectDetectionOutput

from ..tiny import (
    NO_DROPOUT,
    SAMPLED,
    SOFTMAX,
    class_of,
    padded_batch,
    some_labels,
    tiny_config,
    tiny_detector,
)


def propose_as(model: nn.Module, output: ObjectDetectionOutput) -> None:
    """Give a model another one's proposals, whose order depends on rounding and on borders."""
    if output.enc_outputs_class is not None:
        proposals = (output.enc_outputs_class, output.enc_outputs_coord_logits)
        model.model.proposals.register_forward_hook(lambda *_: proposals)


@torch.no_grad()
def test_padding_does_not_change_an_image(variant: str) -> None:
    """An image predicts the same alone and padded in a batch: padding is masked everywhere."""
    model = tiny_detector(variant)
    image = torch.randn(1, 3, 64, 64)
    alone = model(image)
    propose_as(model, alone)
    canvas = torch.zeros(1, 3, 96, 128)
    canvas[..., :64, :64] = image
    mask = torch.zeros(1, 96, 128)
    mask[:, :64, :64] = 1
    # The convolutions see zeros beyond the border in both cases, up to the bias of the stem.
    padded = model(canvas, mask)
    # The centre of a level's last, half real cell is part of Deformable's geometry.
    atol = 0.1 if variant in SAMPLED else 0.02
    assert_close(padded.pred_boxes, alone.pred_boxes, atol=atol, rtol=0)
    if variant in SAMPLED:
        return  # on so small a canvas its strided convolutions carry garbage into every level
    garbage = model(canvas + 9 * (1 - mask[:, None]), mask)
    unmasked = model(canvas + 9 * (1 - mask[:, None]))
    change = (garbage.logits - padded.logits).abs().max()
    assert change < (unmasked.logits - padded.logits).abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_no_mask_means_all_pixels_are_real(variant: str, grad: bool) -> None:
    """Leaving `pixel_mask` out equals a mask of ones (1e-5), which inference doesn't use."""
    model = tiny_detector(variant)
    pixel_values, _ = padded_batch()
    masks = []
    model.model.encoder.register_forward_pre_hook(lambda _, inputs: masks.append(inputs[2].mask))
    with torch.set_grad_enabled(grad):
        without = model(pixel_values)
        ones = model(pixel_values, torch.ones(pixel_values.shape[0], *pixel_values.shape[2:]))
    assert_close(without.logits, ones.logits, atol=1e-5, rtol=0)
    assert masks[0] is None and (masks[1] is None) != grad


@torch.no_grad()
def test_auxiliary_loss_does_not_change_predictions(variant: str) -> None:
    """Predictions are the same with auxiliary losses on and off (1e-6); the loss is not."""
    batch = padded_batch()
    on = tiny_detector(variant, auxiliary_loss=True)(*batch, labels=some_labels())
    off = tiny_detector(variant, auxiliary_loss=False)(*batch, labels=some_labels())
    assert_close(on.logits, off.logits, atol=1e-6, rtol=0)
    assert_close(on.pred_boxes, off.pred_boxes, atol=1e-6, rtol=0)
    assert len(on.auxiliary_outputs) == 2 and off.auxiliary_outputs is None
    assert on.loss > off.loss
    assert {"loss_ce", "loss_ce_0", "loss_ce_1"} <= set(on.loss_dict)
    assert "loss_ce_0" not in off.loss_dict


@torch.no_grad()
def test_attentions_and_hidden_states_when_asked_for(variant: str) -> None:
    """With the default attention the weights are returned, sum to one and skip padding."""
    model = tiny_detector(variant)
    pixel_values, pixel_mask = padded_batch(height=96, width=128)
    plain = model(pixel_values, pixel_mask)
    output = model(pixel_values, pixel_mask, output_attentions=True, output_hidden_states=True)
    assert_close(output.logits, plain.logits, atol=1e-5, rtol=0)
    assert plain.cross_attentions is None and plain.encoder_hidden_states is None
    num_tokens = output.encoder_last_hidden_state.shape[1]
    assert [w.shape for w in output.decoder_attentions] == [(2, 4, 7, 7)] * 3
    if variant in SAMPLED:  # per query, head, level and point, and where that is
        assert [w.shape for w in output.cross_attentions] == [(2, 7, 4, 4, 4)] * 3
        assert [w.shape for w in output.decoder_sampling_locations] == [(2, 7, 4, 4, 4, 2)] * 3
        assert [w.shape for w in output.encoder_attentions] == [(2, num_tokens, 4, 4, 4)] * 2
        assert output.encoder_sampling_locations[0].shape == (2, num_tokens, 4, 4, 4, 2)
        size = 2 if variant == "deformable_detr" else 4
        assert [r.shape for r in output.reference_points] == [(2, 7, size)] * 3
        weights_per_query = [w.flatten(3) for w in output.cross_attentions]
    else:
        assert [w.shape for w in output.cross_attentions] == [(2, 4, 7, num_tokens)] * 3
        assert [w.shape for w in output.encoder_attentions] == [(2, 4, num_tokens, num_tokens)] * 2
        weights_per_query = [*output.cross_attentions, *output.encoder_attentions]
    assert len(output.encoder_hidden_states) == 3 and len(output.decoder_hidden_states) == 4
    for weights in weights_per_query:
        assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_tuple_output(variant: str) -> None:
    """`return_dict=False` gives the same entries as a tuple."""
    model = tiny_detector(variant)
    batch = padded_batch()
    logits, pred_boxes, *_ = model(*batch, return_dict=False)
    output = model(*batch)
    assert_close(logits, output.logits)
    assert_close(pred_boxes, output.pred_boxes)


@pytest.mark.parametrize(
    ("pixel_values", "pixel_mask", "message"),
    [
        (torch.zeros(3, 64, 64), None, r"pixel_values has shape \(3, 64, 64\)"),
        (torch.zeros(1, 4, 64, 64), None, r"expected \(batch, 3, height, width\)"),
        (torch.zeros(2, 3, 64, 64), torch.ones(1, 64, 64), r"pixel_mask has shape \(1, 64, 64\)"),
        (torch.zeros(1, 3, 64, 64), torch.ones(1, 1, 64, 64), "1 on real pixels"),
    ],
)
def test_wrong_shapes_are_refused(
    variant: str, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None, message: str
) -> None:
    """Shapes that don't fit are named, instead of failing deep inside."""
    with pytest.raises(ValueError, match=message):
        tiny_detector(variant)(pixel_values, pixel_mask)


WRONG_IMAGES = [
    (None, "of type NoneType"),
    ([[0.5]], "of type list"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "of torch.uint8; expected .*floating-point"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.bool), "of torch.bool"),
    (torch.zeros(1, 3, 64, 64, dtype=torch.complex64), "of torch.complex64"),
]


@pytest.mark.parametrize(("pixel_values", "message"), WRONG_IMAGES)
def test_wrong_types_of_images_are_refused(
    variant: str, pixel_values: object, message: str
) -> None:
    """Integers, booleans and complex numbers aren't cast to floating-point numbers silently."""
    with pytest.raises(TypeError, match=f"pixel_values is {message}"):
        tiny_detector(variant)(pixel_values)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("value", [0.5, float("nan"), 255, -1])
def test_wrong_values_of_masks_are_refused(variant: str, value: float, grad: bool) -> None:
    """A mask has values 0 and 1 only; others, also NaN, would count as real pixels."""
    pixel_values, pixel_mask = padded_batch()
    pixel_mask = pixel_mask.to(torch.tensor(value).dtype)
    pixel_mask[1, -1, -1] = value
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=f"mask contains {value};"):
        tiny_detector(variant)(pixel_values, pixel_mask)


def test_wrong_types_of_masks_are_refused(variant: str) -> None:
    """A mask is a tensor that isn't complex."""
    pixel_values, pixel_mask = padded_batch()
    for wrong, message in ((pixel_mask.tolist(), "type list"), (pixel_mask + 0j, "complex64")):
        with pytest.raises(TypeError, match=f"pixel_mask is of .*{message}; expected a tensor"):
            tiny_detector(variant)(pixel_values, wrong)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float16])
def test_dtypes_of_masks(variant: str, dtype: torch.dtype) -> None:
    """Boolean, integer and floating-point masks mean the same."""
    model = tiny_detector(variant)
    pixel_values, pixel_mask = padded_batch()
    expected = model(pixel_values, pixel_mask).logits
    assert torch.equal(model(pixel_values, pixel_mask.to(dtype)).logits, expected)


@pytest.mark.parametrize("training", [True, False])
def test_images_without_real_pixels_are_refused(variant: str, training: bool) -> None:
    """Attention to nothing is NaN; Deformable DETR had a finite loss and NaN gradients."""
    model = tiny_detector(variant).train(training)
    pixel_values, pixel_mask = padded_batch()
    pixel_mask[1] = 0
    with pytest.raises(ValueError, match="no real pixel in image 1,"):
        model(pixel_values, pixel_mask, labels=some_labels() if training else None)
    if variant not in SAMPLED:
        # Between the pixels that the map keeps, which are 32 apart.
        pixel_mask[1, 33:40, 33:40] = 1
        with pytest.raises(ValueError, match="none that is left on the feature maps"):
            model(pixel_values, pixel_mask)


def test_padding_at_the_top_or_left(variant: str) -> None:
    """Global attention takes any mask; Deformable DETR, whose geometry can't, refuses it."""
    model = tiny_detector(variant)
    pixel_values, pixel_mask = padded_batch()
    for flipped in ((1,), (2,), (1, 2)):
        mask = pixel_mask.flip(flipped)
        if variant in SAMPLED:
            with pytest.raises(ValueError, match=r"image 1 don't begin in .*upper left corner"):
                model(pixel_values, mask)
        else:
            loss = model(pixel_values, mask, labels=some_labels()).loss
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    hole = pixel_mask.clone()
    hole[:, 16:40, 16:40] = 0
    assert model(pixel_values, hole).logits.isfinite().all()
    hole[:, 0, 16:40] = 0
    if variant in SAMPLED:
        with pytest.raises(ValueError, match="gaps in the first row or column"):
            model(pixel_values, hole)


def test_bad_labels_are_refused(variant: str) -> None:
    """The loss refuses fewer labels than images, pixels for boxes, and unknown classes."""
    model = tiny_detector(variant)
    batch = padded_batch()
    with pytest.raises(ValueError, match="1 dicts for 2 images"):
        model(*batch, labels=some_labels((2,)))
    pixels = some_labels((1, 1))
    pixels[1]["boxes"] *= 300
    with pytest.raises(ValueError, match=r"labels\[1\], object 0.*not in pixels"):
        model(*batch, labels=pixels)
    with pytest.raises(ValueError, match=r"outside 0 … 4"):
        wrong = [{**t, "class_labels": t["class_labels"] * 0 + 5} for t in some_labels()]
        model(*batch, labels=wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_a_gpu_computes_the_same(variant: str) -> None:
    """Predictions, loss and gradients are the CPU's within rounding, if TF32 is off."""
    model = tiny_detector(variant, auxiliary_loss=True, **NO_DROPOUT)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        results = [results_on(device, model) for device in ("cpu", "cuda")]
    assert_close(results[1], results[0], atol=1e-4, rtol=1e-3)


def results_on(device: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Predictions, loss and all gradients, on CPU."""
    model.to(device).zero_grad()
    labels = [{k: v.to(device) for k, v in label.items()} for label in some_labels()]
    output = model(*(tensor.to(device) for tensor in padded_batch()), labels=labels)
    output.loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {**gradients, **{key: output[key] for key in ("loss", "logits", "pred_boxes")}}
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_half_precision_inference(variant: str, dtype: torch.dtype, atol: float) -> None:
    """bf16 and fp16 models run on float32 images and stay near float32."""
    batch = padded_batch()
    expected = tiny_detector(variant)(*batch)
    model, half = tiny_detector(variant), tiny_detector(variant).to(dtype)
    propose_as(model, expected)
    propose_as(half, expected)
    output = half(*batch)
    assert output.logits.dtype == dtype
    assert_close(output.logits.float(), expected.logits, atol=atol, rtol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(*batch)
    assert_close(autocast.logits.float(), expected.logits, atol=0.1, rtol=0)


REFERENCES = [  # of Conditional DETR two layers in bf16 predict the logits
    ("conditional_detr", {}, 3e-3),
    ("deformable_detr", {}, 1e-3),
    ("deformable_detr", {"with_box_refine": True, "two_stage": True}, 1e-5),
]


@torch.no_grad()
@pytest.mark.parametrize(("variant", "changes", "atol"), REFERENCES)
def test_references_of_bf16_models(variant: str, changes: dict, atol: float) -> None:
    """Reference points and proposals take their sigmoid in float32, where a pixel is a number."""
    model = tiny_detector(variant, num_queries=200, **changes).bfloat16()
    exact = tiny_detector(variant, num_queries=200, **changes)
    exact.load_state_dict(model.state_dict())
    batch = padded_batch(height=128, width=160)
    references = []
    for detector in (model, exact):
        output = detector.model(*batch, output_attentions=True)
        logits = output.enc_outputs_coord_logits
        references.append(output.reference_points[0] if logits is None else logits.sigmoid())
        assert output.reference_points[0].dtype == torch.float32
    assert_close(*references, atol=atol, rtol=0)


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_training(variant: str, autocast: bool) -> None:
    """Pure bf16 and autocast training give finite gradients, the loss in float32."""
    model = tiny_detector(variant, auxiliary_loss=True).train()
    if not autocast:
        model = model.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(*padded_batch(), labels=some_labels()).loss
    loss.backward()
    assert loss.dtype == torch.float32
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(variant: str, use_reentrant: bool) -> None:
    """Recomputing activations gives the same gradients for every parameter (1e-5)."""
    plain = tiny_detector(variant, **NO_DROPOUT).train()
    saving = tiny_detector(variant, **NO_DROPOUT).train()
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return checkpoint(*args, use_reentrant=use_reentrant, **kwargs)

    saving._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=counting)
    for model in (plain, saving):
        torch.manual_seed(0)  # for denoising
        model(*padded_batch(), labels=some_labels()).loss.backward()
    assert len(calls) == 2 + 3  # encoder and decoder layers
    recomputed = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        if parameter.requires_grad:
            assert_close(recomputed[name].grad, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_initial_weights(variant: str) -> None:
    """Xavier in the transformer, priors in the heads, N(0, 1) queries, as officially."""
    model = tiny_detector(variant, encoder_ffn_dim=256, num_queries=100)
    layer = model.model.encoder.layers[0]
    bound = (6 / (64 + 256)) ** 0.5
    assert 0.9 * bound < layer.fc1.weight.abs().max() <= bound
    std = model.model.learned_queries().weight.std()
    if variant == "dino_detr":  # Xavier, too
        bound = (6 / (64 + 100)) ** 0.5
        assert 0.9 * bound < std * 3**0.5 < 1.1 * bound
    else:
        assert 0.9 < std < 1.1
    heads = ("class_labels_classifier", "bbox_predictor")
    if variant == "deformable_detr":
        heads = ("class_embed.0", "bbox_embed.0")
    elif variant == "dino_detr":
        heads = ("class_embed", "model.decoder.bbox_embed")
    class_head, box_head = (model.get_submodule(name) for name in heads)
    assert 0.9 * 64**-0.5 < class_head.weight.abs().max() <= 64**-0.5
    if variant in SOFTMAX:
        bound = (6 / (4 * 64)) ** 0.5
        assert 0.9 * bound < layer.self_attn.q_proj.weight.abs().max() <= bound
        assert layer.self_attn.q_proj.bias.abs().max() == 0
        return
    assert_close(class_head.bias, torch.full((5,), -4.59512), atol=1e-4, rtol=0)  # -log(99)
    assert box_head.layers[-1].weight.abs().max() == 0
    size = -2.0 if variant == "deformable_detr" else 0.0
    assert box_head.layers[-1].bias.tolist() == [0, 0, size, size]


def test_own_init_leaves_the_backbone_alone(variant: str) -> None:
    """timm's initial (or pretrained) weights survive the model's own initialisation."""
    torch.manual_seed(3)
    model = class_of(variant, "Model")(tiny_config(variant))
    bare = model.backbone.conv_encoder["model"].conv1[0]
    assert isinstance(bare, nn.Conv2d)
    torch.manual_seed(3)
    import timm

    expected = timm.create_model("test_resnet", features_only=True).conv1[0].weight
    assert_close(bare.weight, expected)


def test_freezing_the_backbone(variant: str) -> None:
    """freeze_backbone() stops it, unfreeze_backbone() trains all but stem and first stage."""
    model = tiny_detector(variant)

    def trained(module: nn.Module) -> int:
        return sum(p.requires_grad for p in module.parameters())

    backbone = model.model.backbone
    initially, everything = trained(backbone), len(list(backbone.parameters()))
    assert 0 < initially < everything
    model.freeze_backbone()
    assert trained(backbone) == 0 and trained(model) > 0
    model.unfreeze_backbone()
    assert trained(backbone) == initially
    model.unfreeze_backbone(num_frozen_stages=0)
    assert trained(backbone) == everything


@torch.no_grad()
def test_resize_queries_keeps_learned_ones(variant: str) -> None:
    """More queries: the old ones stay and predict; fewer: the first ones stay."""
    model = tiny_detector(variant)
    old = model.model.learned_queries().weight.clone()
    model.resize_queries(11)
    new = model.model.learned_queries().weight
    assert_close(new[:7], old)
    assert new.shape == (11, old.shape[1]) and len({tuple(row.tolist()) for row in new}) == 11
    assert model.config.num_queries == 11 and new.requires_grad
    assert model(*padded_batch()).logits.shape[:2] == (2, 11)
    model.resize_queries(4)
    assert_close(model.model.learned_queries().weight, old[:4])
    with pytest.raises(ValueError, match="num_queries is 0"):
        model.resize_queries(0)


@torch.no_grad()
def test_compiled_inference(variant: str) -> None:
    """`torch.compile(fullgraph=True)` traces the whole forward and agrees with eager (1e-5)."""
    model = tiny_detector(variant, encoder_layers=1, decoder_layers=2)
    batch = padded_batch()
    torch.compiler.reset()  # each variant compiles the shared code anew, which torch limits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(*batch)
    assert_close(compiled.logits, model(*batch).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_inductor_inference(variant: str) -> None:
    """The default compiler agrees with eager too (1e-4)."""
    model = tiny_detector(variant, encoder_layers=1, decoder_layers=2)
    batch = padded_batch()
    torch.compiler.reset()  # each variant compiles the shared code anew, which torch limits
    compiled = torch.compile(model, fullgraph=True)(*batch)
    assert_close(compiled.logits, model(*batch).logits, atol=1e-4, rtol=0)


@torch.no_grad()
def test_export_with_dynamic_batch_and_size(variant: str) -> None:
    """An exported program serves other batch sizes, heights and widths (1e-5)."""
    from torch.export import Dim, export

    model = tiny_detector(variant, encoder_layers=1, decoder_layers=2)
    dynamic = {
        "pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "pixel_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC},
    }
    program = export(
        model, padded_batch(2, 128, 160), dynamic_shapes=dynamic, strict=False
    ).module()
    sizes = [(1, 96, 96), (3, 224, 128)]
    if not torch.__version__.startswith("2.11"):
        # There a max-pool alone is tied to sizes of the parity that it was exported with.
        sizes.append((3, 97, 131))
    for size in sizes:
        batch = padded_batch(*size)
        assert_close(program(*batch).logits, model(*batch).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["sine", "learned"])
def test_position_encodings(variant: str, kind: str) -> None:
    """Both encodings run; the learned one has tables of its own under the model."""
    model = tiny_detector(variant, position_embedding_type=kind)
    assert model(*padded_batch()).logits.isfinite().all()
    names = [name for name in model.state_dict() if "position_embedding." in name]
    assert len(names) == (2 if kind == "learned" else 0)


def test_detector_and_model_agree(variant: str) -> None:
    """The detector's state is what the bare model gives; unknown arguments are an error."""
    detector = tiny_detector(variant)
    batch = padded_batch()
    with torch.no_grad():
        assert_close(detector(*batch).last_hidden_state, detector.model(*batch).last_hidden_state)
    with pytest.raises(TypeError, match="pixel_msk"):
        detector(batch[0], pixel_msk=batch[1])


def test_queries_that_are_proposals(tmp_path: Path) -> None:
    """resize_queries changes their number, also of the saved model; they have no groups."""
    model = tiny_detector("deformable_detr", with_box_refine=True, two_stage=True)
    with pytest.raises(ValueError, match=r"not learned; model.resize_queries\(n\)"):
        model.add_query_groups(2)
    model.resize_queries(5)
    assert model(*padded_batch()).logits.shape == (2, 5, 5)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.model.num_queries == loaded.config.two_stage_num_proposals == 5


def test_valid_ratios_place_the_proposals() -> None:
    """Deformable's geometry is that of the real image: padding moves no token's centre."""
    mask = torch.zeros(1, 16, 32)
    mask[:, :8, :16] = 1
    maps = [torch.zeros(1, 4, 8, 16), torch.zeros(1, 4, 4, 8)]
    _, _, padded = build_pyramid(maps, mask, SinePositionEncoding(4))
    assert_close(padded.valid_ratios, torch.full((1, 2, 2), 0.5))
    real = [torch.zeros(1, 4, 4, 8), torch.zeros(1, 4, 2, 4)]
    _, _, alone = build_pyramid(real, None, SinePositionEncoding(4))
    centers = padded.token_centers[padded.mask]
    assert_close(centers, alone.token_centers[0])
    # On the padded map the same places are half as far from the corner.
    scaled = padded.scale_to_levels(alone.token_centers)
    assert_close(scaled, alone.token_centers[:, :, None].expand(-1, -1, 2, -1) * 0.5)
