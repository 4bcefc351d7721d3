"""The skeleton of panoptic segmentation: a detector, and a mask for each of its objects."""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .criterion import DetectionCriterion
from .detection_transformer import ObjectDetector
from .losses import mask_dice_loss, mask_focal_loss
from .mask_head import AttentionMaps, MaskHead
from .outputs import DetectionModelOutput, ObjectDetectionOutput, SegmentationOutput
from .pretrained_model import DetectionPreTrainedModel
from .targets import prepare_targets


class Segmenter(DetectionPreTrainedModel):
    """A detector with a mask head (DETR, Section 4.4), which may be trained after it, alone.

    A subclass puts its detector at the attribute that `base_model_prefix` names, then calls
    `add_mask_head`.
    """

    @property
    def detector(self) -> ObjectDetector:
        """The detector, whose objects get masks."""
        return getattr(self, self.base_model_prefix)

    @property
    def criterion(self) -> DetectionCriterion:
        """The detector's."""
        return self.detector.criterion

    def add_mask_head(self, config: PreTrainedConfig) -> None:
        """Add `bbox_attention` and `mask_head`, names of the files.

        Raises:
            ValueError: if the backbone has no three maps finer than the one that is encoded.
        """
        finer = self.detection_transformer.backbone.num_channels[-2::-1][:3]
        num_heads = config.encoder_attention_heads
        self.bbox_attention = AttentionMaps(config.d_model, num_heads)
        self.mask_head = MaskHead(config.d_model, num_heads, finer)

    def freeze_detector(self) -> None:
        """Train the mask head alone, as the paper does after the detector's own training."""
        self.detector.requires_grad_(False)

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        labels: list[dict[str, Tensor]] | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> SegmentationOutput | tuple:
        """Detect objects and their masks; with labels, also compute the loss.

        Args:
            pixel_values: (B, 3, H, W), normalised; zeros on padding.
            pixel_mask: (B, H, W), 1 on real pixels and 0 on padding; None if all are real.
            labels: as for the detector, and `masks` (n, h, w) in each, 1 on the object's pixels;
                images are padded at the bottom and the right.
            output_hidden_states: also return the states between layers.
            output_attentions: also return attention weights.
            return_dict: False returns a tuple instead.

        Raises:
            ValueError, TypeError: if images or labels can't be used, in words.
        """
        states = self.detection_transformer(
            pixel_values,
            pixel_mask,
            output_hidden_states,
            output_attentions,
            return_dict=True,
            output_feature_maps=True,
        )
        detected = self.detector.detect(states, labels, output_attentions)
        output = SegmentationOutput(**detected)
        maps = self.bbox_attention(
            states.last_hidden_state, states.encoder_last_hidden_state, states.token_mask
        )
        if labels is not None:
            self._add_mask_loss(output, maps, states, labels, pixel_values.shape[-2:])
        if labels is None or not self.training:
            batch_size, num_queries = maps.shape[:2]
            image = torch.arange(batch_size, device=maps.device).repeat_interleave(num_queries)
            masks = self._masks(maps.flatten(0, 1), image, states)
            output["pred_masks"] = masks.unflatten(0, (batch_size, num_queries))
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def _masks(self, maps: Tensor, image: Tensor, states: DetectionModelOutput) -> Tensor:
        """Mask logits (P, h, w) of objects with attention maps (P, M, S) in images (P,)."""
        features = states.projected_feature_maps[-1]
        maps = maps.unflatten(-1, features.shape[-2:])  # (P, M, h, w)
        return self.mask_head(features, maps, image, states.feature_maps[-2::-1][:3])

    def _add_mask_loss(
        self,
        output: ObjectDetectionOutput,
        maps: Tensor,
        states: DetectionModelOutput,
        labels: list[dict[str, Tensor]],
        image_hw: tuple[int, int],
    ) -> None:
        """Add both mask losses of the last layer's matched queries to an output."""
        targets = prepare_targets(labels, len(maps), maps.device)
        logits, boxes = output.logits[None].float(), output.pred_boxes[None].float()
        (matches,) = self.criterion.matcher(logits, boxes, targets)
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(matches)])
        query = torch.cat([query for query, _ in matches])
        image, query = image.to(maps.device), query.to(maps.device)
        masks = self._masks(maps[image, query], image, states).float()
        masks = F.interpolate(masks[:, None], size=image_hw, mode="bilinear")[:, 0]
        pairs = masks.flatten(1), _matched_masks(labels, matches, masks).flatten(1)
        num_boxes = self.criterion.totals(targets, logits.shape[2]).num_boxes
        terms = {
            "loss_mask": mask_focal_loss(*pairs).sum() / num_boxes,
            "loss_dice": mask_dice_loss(*pairs).sum() / num_boxes,
        }
        weights = self.config.mask_loss_coefficient, self.config.dice_loss_coefficient
        output["loss"] = output.loss + weights[0] * terms["loss_mask"]
        output["loss"] = output.loss + weights[1] * terms["loss_dice"]
        output["loss_dict"] = {**output.loss_dict, **terms}


def _matched_masks(labels: list[dict[str, Tensor]], matches: list, masks: Tensor) -> Tensor:
    """True masks of the matched objects, padded to the canvas of the predicted (P, H, W)."""
    padded = []
    for number, (target, (_, index)) in enumerate(zip(labels, matches, strict=True)):
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
