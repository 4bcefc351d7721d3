"""Configuration of Deformable DETR (arXiv 2010.04159)."""

from huggingface_hub.dataclasses import strict

from ..configuration import Number
from ..configuration_checks import MOST, check_range
from ..configuration_sampled_attention import SampledAttentionConfig


@strict
class DeformableDetrConfig(SampledAttentionConfig):
    """Configuration of Deformable DETR; fields of `SampledAttentionConfig` and these.

    Args:
        with_box_refine: whether each decoder layer refines the boxes of the previous one.
        two_stage: whether queries start from the encoder's best proposals; requires
            `with_box_refine`.
        two_stage_num_proposals: number of proposals, and of queries, if `two_stage`.
        cls_loss_coefficient: weight of the classification loss; transformers uses 1.
        tie_word_embeddings: whether prediction heads share weights, named as in transformers.
        disable_custom_kernels, return_intermediate, max_position_embeddings: fields of
            transformers, unused.
    """

    model_type = "deformable_detr"

    num_queries: int = 300
    encoder_ffn_dim: int = 1024
    decoder_ffn_dim: int = 1024
    with_box_refine: bool = False
    two_stage: bool = False
    two_stage_num_proposals: int = 300
    # Deviation: class cost and weight are 2 as in the paper; in transformers they are 1.
    class_cost: Number = 2
    cls_loss_coefficient: Number = 2
    tie_word_embeddings: bool = True
    disable_custom_kernels: bool = False
    return_intermediate: bool = True
    max_position_embeddings: int = 1024

    @property
    def queries_per_image(self) -> int:
        """Number of queries that the decoder has for an image."""
        return self.two_stage_num_proposals if self.two_stage else self.num_queries

    @queries_per_image.setter
    def queries_per_image(self, number: int) -> None:
        setattr(self, "two_stage_num_proposals" if self.two_stage else "num_queries", number)

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        super().validate_architecture()
        check_range(self, ("two_stage_num_proposals",), low=1, high=MOST)
        if self.two_stage and not self.with_box_refine:
            raise ValueError(
                "two_stage=True requires with_box_refine=True, because the second stage refines "
                "the boxes of the first."
            )
