"""The training loss: match, then compare, for all decoder layers at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .classification import Classification
from .loss_terms import LossNormalizers, box_giou_loss, box_l1_loss, count_loss_normalizers
from .matcher import HungarianMatcher, Matches, NonFinitePredictionError, check_predictions
from .targets import Targets, prepare_targets


@dataclass(frozen=True)
class LossPart:
    """Predictions of one set of queries, and how they enter the loss.

    Attributes:
        logits: (N, B, Q, C'), the decoder's layers in order.
        pred_boxes: (N, B, Q, 4), (cx, cy, w, h) in [0, 1].
        matches: per image indices of queries and of their objects, (n,) each, int64 on the CPU, in
            all layers; None matches each layer by itself.
        weight: factor in the total.
        suffix: ends the names of the terms in `loss_dict`; None leaves them out. Losses with one
            are multiplied by `weight`, so that they show their share of the total.
        labels: per image what the predictions are compared with; None: the labels of the batch.
        num_groups: G equal parts of the queries, each matched by itself; matches that are given
            are then per image and group, an image's groups together.
        source: what made the predictions, for errors; None: the detector's own queries.
    """

    logits: Tensor
    pred_boxes: Tensor
    matches: Sequence[tuple[Tensor, Tensor]] | None = None
    weight: float = 1.0
    suffix: str | None = ""
    labels: list[dict[str, Tensor]] | None = None
    num_groups: int = 1
    source: str | None = None


@dataclass(frozen=True)
class FinalLayerMatches:
    """The detector's queries that are matched to objects in the last decoder layer.

    Attributes:
        pairs: per image query and object indices, (n,) each, int64 on the CPU.
        normalizers: what sums over objects are divided by.
    """

    pairs: Sequence[tuple[Tensor, Tensor]]
    normalizers: LossNormalizers


class DetectionCriterion:
    """Sum of classification, L1 and generalised-IoU losses over the decoder's layers.

    Each layer is matched by itself and contributes the same three terms (DETR, Section 3.1 and
    "auxiliary decoding losses").

    Args:
        matcher: pairs queries and objects; its classification is also that of the loss.
        class_weight, bbox_weight, giou_weight: weights of the three terms.
    """

    def __init__(
        self,
        matcher: HungarianMatcher,
        class_weight: float,
        bbox_weight: float,
        giou_weight: float,
    ) -> None:
        self.classification = matcher.classification
        self.matcher = matcher
        self.weights = {
            "loss_ce": class_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
        }

    def __call__(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: list[dict[str, Tensor]],
        normalizers: LossNormalizers | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            logits: (N, B, Q, C'), the decoder's layers in order.
            pred_boxes: (N, B, Q, 4), (cx, cy, w, h) in [0, 1].
            labels: per image `class_labels` (n,) and `boxes` (n, 4), (cx, cy, w, h) in [0, 1].
            normalizers: counts of a larger batch that this one is a part of: the losses of the
                parts then add up to that of the larger batch. None: counts of this batch.

        Returns:
            The weighted total, and its unweighted terms by name: the last layer's bare
            (`loss_ce`, `loss_bbox`, `loss_giou`; for logging `class_error` in percent and
            `cardinality_error`), those of layer i with the suffix `_i`.

        Raises:
            ValueError, TypeError: for labels or predictions that can't be used.
        """
        total, terms, _ = self.sum_parts([LossPart(logits, pred_boxes)], labels, normalizers)
        return total, terms

    # Matching calls scipy, so a compiled training step has a graph break at the loss.
    @torch.compiler.disable
    def sum_parts(
        self,
        parts: Sequence[LossPart],
        labels: list[dict[str, Tensor]],
        normalizers: LossNormalizers | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], FinalLayerMatches]:
        """Weighted sum of the losses of several sets of queries, the detector's own first.

        All are divided by the normalizers of the detector's own queries. The processes count them
        together, before any check that may fail in one of them: the others would wait forever.

        Args:
            parts: the sets.
            labels, normalizers: as in a call.

        Returns:
            Total and terms as in a call, and the final matches of the detector's own queries.
        """
        own, device = parts[0], parts[0].logits.device
        total, loss_dict, final_matches = 0, {}, []
        # Matching and loss are float32 whatever the model computes in.
        with torch.autocast(device.type, enabled=False):
            targets = prepare_targets(labels, own.logits.shape[1], device)
            if normalizers is None:
                num_queries = own.logits.shape[2] // own.num_groups
                normalizers = count_loss_normalizers(targets.counts, num_queries, device)
            for part in parts:
                loss, terms, matches = self._part_loss(part, targets, normalizers)
                total = total + part.weight * loss
                if part.suffix is not None:
                    loss_dict |= _named_terms(terms, part)
                final_matches.append(matches[-1])
        return total, loss_dict, FinalLayerMatches(final_matches[0], normalizers)

    def _part_loss(
        self, part: LossPart, targets: Targets, normalizers: LossNormalizers
    ) -> tuple[Tensor, dict[str, Tensor], Matches]:
        """Unweighted loss and terms of one set of queries, and its matches."""
        logits, pred_boxes = (
            tensor.float().unflatten(2, (part.num_groups, -1)).flatten(1, 2)  # (N, B * G, Q, …)
            for tensor in (part.logits, part.pred_boxes)
        )
        if part.labels is not None:
            targets = prepare_targets(part.labels, len(targets.counts), logits.device)
        targets = targets.repeat(part.num_groups)
        matches = self._match(part, logits, pred_boxes, targets)
        total, terms = self.compare(logits, pred_boxes, targets, matches, normalizers)
        if part.source is not None:
            del terms["class_error"]
        return total, terms, matches

    def _match(
        self, part: LossPart, logits: Tensor, pred_boxes: Tensor, targets: Targets
    ) -> Matches:
        """Matches of one set of queries; predictions (N, B * G, Q, …) must be finite."""
        try:
            if part.matches is None:
                return self.matcher(logits, pred_boxes, targets)
            check_predictions(logits, pred_boxes)
            return [list(part.matches)] * len(logits)
        except NonFinitePredictionError as error:
            if part.source is None:
                raise
            images = sorted({index // part.num_groups for index in error.images})
            raise NonFinitePredictionError(
                f"Predictions of {part.source} contain NaN or infinity, in images {images}.",
                images,
            ) from error

    def compare(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        targets: Targets,
        matches: Matches,
        normalizers: LossNormalizers,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of predictions that have been matched; arguments and result as in a call."""
        num_layers = len(logits)
        layer, image, query, index = flatten_matches(matches, logits.device)
        matched_labels = targets.class_labels[image, index]  # (N * P,)

        target_classes = torch.full(
            logits.shape[:3], self.classification.num_labels, device=logits.device
        )
        target_classes[layer, image, query] = matched_labels

        pairs = pred_boxes[layer, image, query], targets.boxes[image, index]  # (N * P, 4) each
        per_layer = (num_layers, len(layer) // num_layers)  # every layer has the same P pairs
        terms = {
            "loss_ce": self.classification.loss(logits, target_classes, normalizers),
            "loss_bbox": box_l1_loss(*pairs).view(per_layer).sum(1) / normalizers.num_boxes,
            "loss_giou": box_giou_loss(*pairs).view(per_layer).sum(1) / normalizers.num_boxes,
            "cardinality_error": self._cardinality_error(logits, targets),
        }
        total = sum(self.weights[name] * terms[name].sum() for name in self.weights)
        last = slice(len(layer) - per_layer[1], None)
        class_error = _class_error(logits[-1, image[last], query[last]], matched_labels[last])
        return total, {**_name_by_layer(terms), "class_error": class_error}

    @torch.no_grad()
    def _cardinality_error(self, logits: Tensor, targets: Targets) -> Tensor:
        """Mean over images of |predicted − true number of objects|, (N,); for logging."""
        counts = torch.tensor(targets.counts).to(logits.device, non_blocking=True)
        predicted = self.classification.num_predicted_objects(logits)  # (N, B)
        return (predicted - counts).abs().float().mean(1)


def make_criterion(
    config: PreTrainedConfig, classification: Classification, class_weight: float
) -> DetectionCriterion:
    """Criterion and matcher with the weights of a configuration."""
    costs = (config.class_cost, config.bbox_cost, config.giou_cost)
    box_weights = (config.bbox_loss_coefficient, config.giou_loss_coefficient)
    return DetectionCriterion(HungarianMatcher(classification, *costs), class_weight, *box_weights)


def flatten_matches(
    matches: Matches, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layer, image, query and object of every pair, each (N * P,), layer by layer."""
    columns = [
        torch.stack([torch.full_like(query, layer), torch.full_like(query, image), query, index])
        for layer, images in enumerate(matches)
        for image, (query, index) in enumerate(images)
    ]
    layer, image, query, index = torch.cat(columns, dim=1).to(device, non_blocking=True)
    return layer, image, query, index


def _named_terms(terms: dict[str, Tensor], part: LossPart) -> dict[str, Tensor]:
    """Terms of one set of queries as in `loss_dict`."""
    if not part.suffix:
        return terms
    return {
        f"{name}{part.suffix}": part.weight * value if name.startswith("loss") else value
        for name, value in terms.items()
    }


@torch.no_grad()
def _class_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Percentage of matched queries (P, C') whose best class isn't the object's (P,)."""
    if len(labels) == 0:
        return logits.new_full((), 100)
    return 100 - 100 * (logits.argmax(-1) == labels).float().mean()


def _name_by_layer(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """`name` for the last layer and `name_i` for layer i, from terms of shape (N,)."""
    named = {name: values[-1] for name, values in terms.items()}
    for name, values in terms.items():
        named.update({f"{name}_{i}": value for i, value in enumerate(values[:-1])})
    return named
