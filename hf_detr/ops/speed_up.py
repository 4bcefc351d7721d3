"""The operator in models of transformers, which sample with a module of their own."""

from itertools import accumulate

from torch import Tensor, nn

from .multi_scale_deformable_attention import Shapes, multi_scale_deformable_attention

SLOW = "MultiScaleDeformableAttention"  # class of transformers, the same in all of its models
FROM = "transformers.models."


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
        sizes = [height * width for height, width in value_spatial_shapes_list]
        starts = [0, *accumulate(sizes[:-1])]
        points = sampling_locations, attention_weights
        return multi_scale_deformable_attention(value, value_spatial_shapes_list, starts, *points)


def speed_up(model: nn.Module) -> nn.Module:
    """Let a model of transformers use this package's operator of deformable attention.

    It is for all models whose attention transformers computes by `MultiScaleDeformableAttention`:
    Grounding DINO, RT-DETR, RF-DETR, LW-DETR, OmDet-Turbo and others. Weights, files and results
    stay the same up to rounding, in training too.

    Args:
        model: is changed in place.

    Returns:
        The same model.

    Raises:
        ValueError: if it has no such module.
    """
    names = [
        name
        for name, module in model.named_modules()
        if type(module).__name__ == SLOW and type(module).__module__.startswith(FROM)
    ]
    if not names and not any(isinstance(module, SampledSum) for module in model.modules()):
        raise ValueError(
            f"{type(model).__name__} has no {SLOW} of transformers; expected a model such as "
            "RTDetrForObjectDetection or GroundingDinoForObjectDetection. Models of hf_detr don't "
            "need it."
        )
    for name in names:
        model.set_submodule(name, SampledSum())
    return model
