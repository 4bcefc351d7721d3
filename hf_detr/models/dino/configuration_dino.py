"""Configuration of DINO (arXiv 2203.03605)."""

from huggingface_hub.dataclasses import strict

from ..configuration import Number
from ..configuration_checks import MOST, check_range
from ..configuration_sampled_attention import SampledAttentionConfig


@strict
class DinoDetrConfig(SampledAttentionConfig):
    """Configuration of DINO; fields of `SampledAttentionConfig` and these.

    The model type is `dino_detr` because `dino` is also the name of self-supervised training
    (arXiv 2104.14294), whose successors transformers has as `dinov2` and `dinov3_vit`, and part of
    the name `grounding-dino`. `num_feature_levels=5` are the paper's "5 scales": the backbone's map
    of stride 4 is used, too.

    Args:
        num_queries: number of object queries, and of the encoder's proposals that they start from.
        position_temperature: of the sines that encode positions on the feature maps, see
            `SinePositionEncoding`.
        position_offset: of the cells in these sines; the paper's is 0, detrex's -0.5.
        shared_heads: whether all decoder layers share one class head and one box head, as in the
            paper's models; those of MMDetection and detrex have heads of their own.
        num_denoising_queries: number of pairs of noised objects, one of them with more noise, that
            a training step adds to each image.
        label_noise_ratio: twice the share of them whose class is replaced by a random one.
        box_noise_scale: how far corners of noised boxes move, relative to half of their size; the
            worse one of a pair moves up to twice as far.
    """

    model_type = "dino_detr"

    num_queries: int = 900
    dropout: Number = 0.0
    attention_dropout: Number = 0.0
    activation_dropout: Number = 0.0
    cls_loss_coefficient: Number = 1
    position_temperature: Number = 20
    position_offset: Number = 0
    shared_heads: bool = True
    num_denoising_queries: int = 100
    label_noise_ratio: Number = 0.5
    # The authors' script trains with 1.0, which is not the default of their configuration, 0.4.
    box_noise_scale: Number = 1.0

    @property
    def num_backbone_levels(self) -> int:
        """Default number of the backbone's last feature maps that are used."""
        return super().num_backbone_levels + (self.num_feature_levels > 4)

    def validate_architecture(self) -> None:
        """Check the values; called by the base class."""
        super().validate_architecture()
        check_range(self, ("position_temperature",), low=1)
        check_range(self, ("position_offset",), low=-1, high=1)
        check_range(self, ("num_denoising_queries",), low=0, high=MOST)
        check_range(self, ("label_noise_ratio",), low=0, high=1)
        check_range(self, ("box_noise_scale",), low=0)
