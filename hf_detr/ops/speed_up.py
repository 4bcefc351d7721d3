"""The operator in models of transformers, which sample with modules of their own."""

from itertools import accumulate

from torch import Tensor, nn

from .multi_scale_deformable_attention import (
    Shapes,
    attend_around_references,
    multi_scale_deformable_attention,
    normalize,
)

FROM = "transformers.models."
SLOW = "MultiScaleDeformableAttention"  # class of transformers, the same in most of its models
# Mask2Former and OneFormer sample in a function, so their whole attention is replaced.
PIXEL_DECODERS = tuple(
    f"{model}PixelDecoderEncoderMultiscaleDeformableAttention"
    for model in ("Mask2Former", "OneFormer")
)
OTHERS = "MultiscaleDeformableAttention"  # how all such classes end


class SampledSum(nn.Module):
    """The operator, called as transformers calls its own module; it has no weights."""

    def forward(
        self,
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_spatial_shapes_list: Shapes,
        level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """Sum samples as `multi_scale_deformable_attention` does.

        Shapes and starts as tensors, and `im2col_step`, aren't used.
        """
        starts = _starts(value_spatial_shapes_list)
        points = sampling_locations, attention_weights
        return multi_scale_deformable_attention(value, value_spatial_shapes_list, starts, *points)


class PixelDecoderAttention(nn.Module):
    """The attention of Mask2Former's and OneFormer's pixel decoder, with the same weights.

    Args:
        module: transformers' attention, whose layers it takes over.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.layout = (module.n_heads, module.n_levels, module.n_points)
        for name, layer in module.named_children():  # in the same order
            self.add_module(name, layer)
        self.train(module.training)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        output_attentions: bool = False,
        spatial_shapes_list: Shapes | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as transformers does; True in `attention_mask` is padding.

        `encoder_attention_mask` and starts as a tensor aren't used. Weights are returned only if
        `output_attentions`.
        """
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        value = self.value_proj(encoder_hidden_states)
        if attention_mask is not None:
            value = value.masked_fill(attention_mask[..., None], 0)
        value = value.unflatten(-1, (self.layout[0], -1))  # (B, S, M, C)
        offsets = self.sampling_offsets(hidden_states).unflatten(-1, (*self.layout, 2))
        logits = self.attention_weights(hidden_states).unflatten(-1, self.layout)
        if spatial_shapes_list is None:  # OneFormer before transformers 5.24
            spatial_shapes_list = spatial_shapes.tolist()
        geometry = spatial_shapes_list, _starts(spatial_shapes_list)
        output = attend_around_references(value, *geometry, reference_points, offsets, logits)
        return self.output_proj(output), normalize(logits) if output_attentions else None


def _starts(shapes: Shapes) -> list[int]:
    return [0, *accumulate(height * width for height, width in shapes[:-1])]


def speed_up(model: nn.Module) -> nn.Module:
    """Let a model of transformers use this package's operator of deformable attention.

    It is for all models whose attention transformers computes by `MultiScaleDeformableAttention`
    (Grounding DINO, RT-DETR, RF-DETR, LW-DETR, OmDet-Turbo and others), Mask2Former and OneFormer.
    Weights, files and results stay the same up to rounding, in training too.

    Args:
        model: is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: if it has no such module.
    """
    kinds = {
        name: type(module).__name__
        for name, module in model.named_modules()
        if type(module).__module__.startswith(FROM)
    }
    slow = [name for name, kind in kinds.items() if kind in (SLOW, *PIXEL_DECODERS)]
    ours = (SampledSum, PixelDecoderAttention)
    if not slow and not any(isinstance(module, ours) for module in model.modules()):
        others = sorted({kind for kind in kinds.values() if kind.endswith(OTHERS)})
        problem = f"{', '.join(others)}, which isn't supported" if others else f"no {SLOW}"
        raise ValueError(
            f"{type(model).__name__} has {problem}; expected a model of transformers such as "
            "RTDetrForObjectDetection, GroundingDinoForObjectDetection, "
            "Mask2FormerForUniversalSegmentation or OneFormerForUniversalSegmentation. RT-DETRv2, "
            "D-FINE and DEIMv2 sample in another way. Models of hf_detr don't need it."
        )
    for name in slow:
        module = model.get_submodule(name)
        is_sum = kinds[name] == SLOW
        model.set_submodule(name, SampledSum() if is_sum else PixelDecoderAttention(module))
    return model
