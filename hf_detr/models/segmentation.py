"""The skeleton of panoptic segmentation: a detector, and a mask for each of its objects."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from ..layers.mask_head import AttentionMaps, MaskHead
from ..losses.criterion import DetectionCriterion, FinalLayerMatches, flatten_matches
from ..losses.loss_terms import LossNormalizers, mask_dice_loss, mask_focal_loss
from ..losses.targets import check_sizes
from .object_detector import ObjectDetector
from .outputs import DetectionModelOutput, SegmentationOutput
from .pretrained_model import DetectionPreTrainedModel

NUM_MAPS = 4  # of the backbone: the one that is encoded, and three finer ones


class Segmenter(DetectionPreTrainedModel):
    """A detector with a mask head (DETR, Section 4.4), which may be trained after it, alone.

    A subclass gives `base_model_prefix`, which names the detector in files, and `detector_class`.

    Args:
        config: configuration of the variant.

    Raises:
        ValueError: if the backbone has no three maps finer than the one that is encoded.
    """

    detector_class: type[ObjectDetector]
    # Level of the memory that the backbone's last map became; the mask head starts from it.
    mask_level = 0

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        setattr(self, self.base_model_prefix, self.detector_class(config))
        finer = self.detection_transformer.backbone.num_channels[-2::-1][: NUM_MAPS - 1]
        # Names on disk: bbox_attention, mask_head
        self.bbox_attention = AttentionMaps(config.d_model, config.encoder_attention_heads)
        self.mask_head = MaskHead(config.d_model, config.encoder_attention_heads, finer)
        self.post_init()

    @property
    def detector(self) -> ObjectDetector:
        """The detector, whose objects get masks."""
        return getattr(self, self.base_model_prefix)

    @property
    def criterion(self) -> DetectionCriterion:
        """The detector's."""
        return self.detector.criterion

    def count_loss_normalizers(self, labels: list[dict[str, Tensor]]) -> LossNormalizers:
        """As for the detector; masks are divided by the number of objects, too."""
        return self.detector.count_loss_normalizers(labels)

    def freeze_detector(self) -> None:
        """Train the mask head alone, as the paper does after the detector's own training."""
        self.detector.requires_grad_(False)

    loss_function = ObjectDetector.loss_function

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        labels: list[dict[str, Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        loss_normalizers: LossNormalizers | None = None,
    ) -> SegmentationOutput | tuple:
        """Detect objects and their masks; with labels, also compute the loss.

        Arguments and errors are those of `ObjectDetector.forward`; labels also have `masks`
        (n, h, w), 1 on the object's pixels. Images are padded at the bottom and the right.
        """
        states = self.detection_transformer(
            pixel_values,
            pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            output_feature_maps=True,
            labels=labels,
        )
        detected, matches = self.detector.detect(
            states, labels, output_attentions, loss_normalizers
        )
        if labels is not None:
            check_sizes(labels, tuple(pixel_values.shape[-2:]), pixel_mask)
        output = SegmentationOutput(**detected, pixel_mask=pixel_mask)
        maps = self._attention_maps(states, output.pred_boxes)
        if matches is None or not self.training:
            batch_size, num_queries = maps.shape[:2]
            image = torch.arange(batch_size, device=maps.device).repeat_interleave(num_queries)
            masks = self._masks(maps.flatten(0, 1), image, states)
            output["pred_masks"] = masks.unflatten(0, (batch_size, num_queries))
        if matches is not None:
            _, image, query, _ = flatten_matches([matches.pairs], maps.device)
            # In training only the masks that are compared: those of all queries take memory.
            matched = (
                self._masks(maps[image, query], image, states)
                if self.training
                else output.pred_masks[image, query]
            )
            self._add_mask_loss(output, matched, labels, matches, pixel_values.shape[-2:])
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def attention_inputs(
        self, queries: Tensor, memory: Tensor, pred_boxes: Tensor, centers: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hook: the queries (B, Q, D) and memory (B, s, D) whose products are attention maps.

        Unless overridden, the outputs of decoder and encoder. Their positions are given too: boxes
        (B, Q, 4) as (cx, cy, w, h) and tokens' centres (B, s, 2) as (x, y), in [0, 1].
        """
        return queries, memory

    def _attention_maps(self, states: DetectionModelOutput, pred_boxes: Tensor) -> Tensor:
        """Where each query looks on the level that the backbone's last map became, (B, Q, M, s)."""
        pyramid, level = states.pyramid, self.mask_level
        start = pyramid.level_start_index[level]
        tokens = slice(start, start + math.prod(pyramid.spatial_shapes[level]))
        queries, memory = self.attention_inputs(
            states.last_hidden_state,
            states.encoder_last_hidden_state[:, tokens],
            pred_boxes,
            pyramid.token_centers[:, tokens],
        )
        mask = None if pyramid.mask is None else pyramid.mask[:, tokens]
        return self.bbox_attention(queries, memory, mask)

    def _masks(self, maps: Tensor, image: Tensor, states: DetectionModelOutput) -> Tensor:
        """Mask logits (P, h, w) of objects with attention maps (P, M, s) in images (P,)."""
        features = states.projected_feature_maps[self.mask_level]
        maps = maps.unflatten(-1, features.shape[-2:])  # (P, M, h, w)
        return self.mask_head(features, maps, image, states.feature_maps[-2::-1][: NUM_MAPS - 1])

    def _add_mask_loss(
        self,
        output: SegmentationOutput,
        masks: Tensor,
        labels: list[dict[str, Tensor]],
        matches: FinalLayerMatches,
        image_hw: tuple[int, int],
    ) -> None:
        """Add both losses of the matched queries' masks (P, h, w), enlarged to the images."""
        masks = F.interpolate(masks[:, None].float(), size=image_hw, mode="bilinear")[:, 0]
        pairs = masks.flatten(1), _matched_masks(labels, matches, masks).flatten(1)
        terms = {
            "loss_mask": mask_focal_loss(*pairs).sum() / matches.normalizers.num_boxes,
            "loss_dice": mask_dice_loss(*pairs).sum() / matches.normalizers.num_boxes,
        }
        weights = self.config.mask_loss_coefficient, self.config.dice_loss_coefficient
        output["loss"] = output.loss + weights[0] * terms["loss_mask"]
        output["loss"] = output.loss + weights[1] * terms["loss_dice"]
        output["loss_dict"] = {**output.loss_dict, **terms}


def _matched_masks(
    labels: list[dict[str, Tensor]], matches: FinalLayerMatches, masks: Tensor
) -> Tensor:
    """True masks of the matched objects, padded to the canvas of the predicted (P, H, W)."""
    padded = []
    for number, (target, (_, index)) in enumerate(zip(labels, matches.pairs, strict=True)):
        if "masks" not in target:
            raise ValueError(f"label {number} has no 'masks'; segmentation needs one per object")
        chosen = target["masks"]
        if chosen.ndim != 3 or len(chosen) != len(target["class_labels"]):
            raise ValueError(
                f"label {number} has masks of shape {tuple(chosen.shape)} for "
                f"{len(target['class_labels'])} objects; expected (n, height, width)"
            )
        height, width = chosen.shape[-2:]
        if height > masks.shape[-2] or width > masks.shape[-1]:
            raise ValueError(
                f"label {number} has masks of {height} x {width} pixels, more than the batch's "
                f"{masks.shape[-2]} x {masks.shape[-1]}"
            )
        chosen = chosen[index.to(chosen.device)].to(masks.device, masks.dtype)
        padded.append(F.pad(chosen, (0, masks.shape[-1] - width, 0, masks.shape[-2] - height)))
    return torch.cat(padded)
