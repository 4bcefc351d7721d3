"""Which query is matched to which object: the exact one-to-one assignment of DETR.

Every object of an image gets the query that makes the total cost least; the other queries learn
"no object". Only one query is rewarded for an object, which is why duplicates disappear. All
decoder layers are matched together, an image's queries are compared with its own objects only, and
one transfer copies everything to the host.
"""

import warnings

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..ops.box_ops import box_cxcywh_to_xyxy, generalized_box_iou
from .classification import Classification
from .targets import Targets, check_target_values

# matches[layer][image] = (query indices, object indices), both (n,) int64 on the CPU
Matches = list[list[tuple[Tensor, Tensor]]]


class NonFinitePredictionError(ValueError):
    """Predictions contain NaN or infinity and can't be matched.

    Attributes:
        images: which images of the batch.
    """

    def __init__(self, message: str, images: list[int]) -> None:
        super().__init__(message)
        self.images = images


class HungarianMatcher:
    """Pair queries and objects at the least total cost (DETR, Eq. 1; arXiv 2005.12872).

    Args:
        classification: says what a class costs (`cost`) and how many classes there are.
        class_cost, bbox_cost, giou_cost: weights of the class, L1 and generalised-IoU costs.

    Raises:
        ValueError: if all weights are zero.
    """

    def __init__(
        self,
        classification: Classification,
        class_cost: float,
        bbox_cost: float,
        giou_cost: float,
    ) -> None:
        if class_cost == 0 and bbox_cost == 0 and giou_cost == 0:
            raise ValueError(
                "class_cost, bbox_cost and giou_cost are all 0, so every assignment costs the same;"
                " give at least one of them (DETR: 1, 5, 2)."
            )
        self.classification = classification
        self.class_cost = class_cost
        self.bbox_cost = bbox_cost
        self.giou_cost = giou_cost

    @torch.no_grad()
    def __call__(self, logits: Tensor, pred_boxes: Tensor, targets: Targets) -> Matches:
        """Match every decoder layer and image.

        Args:
            logits: (N, B, Q, C'), C' as the classification wants it.
            pred_boxes: (N, B, Q, 4), (cx, cy, w, h) in [0, 1].
            targets: the objects of the B images.

        Returns:
            `matches[layer][image]`: two index tensors, queries in rising order and their objects.

        Raises:
            ValueError: for objects that can't be learned (see `check_target_values`).
            NonFinitePredictionError: for predictions that aren't finite; it names the layer, the
                tensor and the image.
        """
        logits, pred_boxes = logits.float(), pred_boxes.float()
        cost, finite, class_labels, boxes = _to_host(
            self.cost(logits, pred_boxes, targets),  # (N, B, Q, T)
            _finite_per_image(logits, pred_boxes),  # (N, 2, B)
            targets.class_labels,
            targets.boxes,
        )
        check_target_values(class_labels, boxes, targets.counts, self.classification.num_labels)
        _check_finite(finite)
        _warn_about_lost_objects(targets.counts, num_queries=logits.shape[2])
        return [
            [_assign(cost[layer, image, :, :n]) for image, n in enumerate(targets.counts)]
            for layer in range(len(cost))
        ]

    def cost(self, logits: Tensor, pred_boxes: Tensor, targets: Targets) -> Tensor:
        """Cost (N, B, Q, T) of every query for every object of the same image."""
        num_labels = self.classification.num_labels
        # Labels out of range are refused later, on the host; here they mustn't crash the device.
        class_labels = targets.class_labels.clamp(0, num_labels - 1)
        class_cost = self.classification.cost(logits, class_labels)
        boxes = targets.boxes.expand(len(logits), -1, -1, -1)  # (N, B, T, 4)
        bbox_cost = torch.cdist(pred_boxes, boxes, p=1)
        giou = generalized_box_iou(
            box_cxcywh_to_xyxy(pred_boxes)[..., :, None, :],  # (N, B, Q, 1, 4)
            box_cxcywh_to_xyxy(targets.boxes)[:, None, :, :],  # (B, 1, T, 4)
        )
        return self.class_cost * class_cost + self.bbox_cost * bbox_cost - self.giou_cost * giou


def _finite_per_image(logits: Tensor, pred_boxes: Tensor) -> Tensor:
    """1 where a layer's logits (row 0) and boxes (row 1) of an image are finite: (N, 2, B)."""
    # A sum is finite only if every term is, and is much cheaper than isfinite() of each.
    return torch.stack([logits.sum((2, 3)), pred_boxes.sum((2, 3))], dim=1).isfinite()


def _to_host(*tensors: Tensor) -> list[np.ndarray]:
    """Copy tensors to the host as float32 arrays, all in one transfer."""
    flat = torch.cat([t.flatten().float() for t in tensors]).cpu().numpy()
    ends = np.cumsum([t.numel() for t in tensors])[:-1]
    return [part.reshape(t.shape) for part, t in zip(np.split(flat, ends), tensors, strict=True)]


def _assign(cost: np.ndarray) -> tuple[Tensor, Tensor]:
    """Least-cost pairs of one layer and image, cost (Q, n)."""
    queries, objects = linear_sum_assignment(cost)
    return torch.from_numpy(queries), torch.from_numpy(objects)


def check_predictions(logits: Tensor, pred_boxes: Tensor) -> None:
    """Refuse predictions of decoder layers, (N, B, Q, …) each, that aren't finite.

    Raises:
        NonFinitePredictionError: naming the layer, the tensor and the image.
    """
    (finite,) = _to_host(_finite_per_image(logits.detach(), pred_boxes.detach()))
    _check_finite(finite)


def _check_finite(finite: np.ndarray) -> None:
    """Refuse the first layer with predictions that aren't finite; finite is (N, 2, B)."""
    bad = np.argwhere(finite == 0)
    if len(bad):
        layer, tensor, image = bad[0]
        name = ("logits", "pred_boxes")[tensor]
        raise NonFinitePredictionError(
            f"The {name} of image {image} hold NaN or infinity, first at decoder layer {layer} of "
            f"those in the loss (0 … {len(finite) - 1}). Usual reasons: a learning rate that is "
            "too high, no gradient clipping (the papers clip the norm at 0.1), overflow in "
            "float16, pixel_values that aren't finite, or a pixel_mask that the model can't use.",
            sorted(set(bad[:, 2].tolist())),
        )


def _warn_about_lost_objects(counts: tuple[int, ...], num_queries: int) -> None:
    if max(counts, default=0) > num_queries:
        # Without numbers of the batch, so that Python shows it once.
        warnings.warn(
            f"An image has more objects than the model queries, {num_queries}: those without a "
            "query are not learned. Use model.resize_queries(n) for more queries, or --num-queries "
            "of hf-detr train.",
            stacklevel=2,
        )
