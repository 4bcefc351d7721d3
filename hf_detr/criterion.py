"""The training loss: match, then compare, for all decoder layers at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from .batch_totals import BatchTotals, count_batch
from .classification import Classification
from .losses import box_giou_loss, box_l1_loss
from .matcher import HungarianMatcher, Matches, NonFinitePredictionError
from .targets import Targets, prepare_targets


@dataclass(frozen=True)
class LastMatches:
    """Which queries of the last decoder layer answer for objects.

    Attributes:
        pairs: per image query and object indices, (n,) each, int64 on the CPU.
        totals: what sums over objects are divided by.
    """

    pairs: list[tuple[Tensor, Tensor]]
    totals: BatchTotals


class DetectionCriterion:
    """Sum of classification, L1 and generalised-IoU losses over the decoder's layers.

    Each layer is matched by itself and contributes the same three terms (DETR, Section 3.1 and
    "auxiliary decoding losses").

    Args:
        classification: the classification object that the matcher has too.
        matcher: pairs queries and objects.
        class_weight, bbox_weight, giou_weight: weights of the three terms.
    """

    def __init__(
        self,
        classification: Classification,
        matcher: HungarianMatcher,
        class_weight: float,
        bbox_weight: float,
        giou_weight: float,
    ) -> None:
        self.classification = classification
        self.matcher = matcher
        self.weights = {
            "loss_ce": class_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
        }
        self._whole_batch: tuple[int, ...] | None = None

    @contextmanager
    def whole_batch(self, labels: Sequence[dict[str, Tensor]]) -> Iterator[None]:
        """Within it, losses are parts of the loss of a larger batch.

        When gradients are accumulated, the sum of the parts' losses is then the loss that the
        whole batch would have at once.

        Args:
            labels: those of all parts; of each only `class_labels` is needed.
        """
        self._whole_batch = tuple(len(target["class_labels"]) for target in labels)
        try:
            yield
        finally:
            self._whole_batch = None

    def totals(self, targets: Targets, num_queries: int) -> BatchTotals:
        """What the losses of these targets are divided by; see `whole_batch`."""
        counts = targets.counts if self._whole_batch is None else self._whole_batch
        return count_batch(counts, num_queries, targets.boxes.device)

    def __call__(
        self, logits: Tensor, pred_boxes: Tensor, labels: list[dict[str, Tensor]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch.

        Args:
            logits: (N, B, Q, C'), the decoder's layers in order.
            pred_boxes: (N, B, Q, 4), (cx, cy, w, h) in [0, 1].
            labels: per image `class_labels` (n,) and `boxes` (n, 4), (cx, cy, w, h) in [0, 1].

        Returns:
            The weighted total, and its unweighted terms by name: the last layer's bare
            (`loss_ce`, `loss_bbox`, `loss_giou`; for logging `class_error` in percent and
            `cardinality_error`), those of layer i with the suffix `_i`.

        Raises:
            ValueError, TypeError: for labels or predictions that can't be used, in words.
        """
        total, terms, _ = self.match_and_compare(logits, pred_boxes, labels)
        return total, terms

    # Matching leaves torch for scipy; a compiled training step goes round the loss.
    @torch.compiler.disable
    def match_and_compare(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: list[dict[str, Tensor]],
        totals: BatchTotals | None = None,
    ) -> tuple[Tensor, dict[str, Tensor], LastMatches]:
        """Loss of a batch as in a call, and which queries of the last layer answer for objects.

        Without `totals` the processes count the batch together, once, before anything can go wrong
        in one of them alone: those that wait for it would wait for ever.
        """
        # Matching and loss are float32 whatever the model computes in.
        with torch.autocast(logits.device.type, enabled=False):
            logits, pred_boxes = logits.float(), pred_boxes.float()
            targets = prepare_targets(labels, logits.shape[1], logits.device)
            totals = totals or self.totals(targets, logits.shape[2])
            matches = self.matcher(logits, pred_boxes, targets)
            total, terms = self.compare(logits, pred_boxes, targets, matches, totals)
            return total, terms, LastMatches(matches[-1], totals)

    def compare(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        targets: Targets,
        matches: Matches,
        totals: BatchTotals,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of predictions that have been matched; arguments and result as in a call."""
        num_layers = len(logits)
        layer, image, query, index = _flatten(matches, logits.device)
        matched_labels = targets.class_labels[image, index]  # (N * P,)

        target_classes = torch.full(
            logits.shape[:3], self.classification.num_labels, device=logits.device
        )
        target_classes[layer, image, query] = matched_labels

        pairs = pred_boxes[layer, image, query], targets.boxes[image, index]  # (N * P, 4) each
        per_layer = (num_layers, len(layer) // num_layers)  # every layer has the same P pairs
        terms = {
            "loss_ce": self.classification.loss(logits, target_classes, totals),
            "loss_bbox": box_l1_loss(*pairs).view(per_layer).sum(1) / totals.num_boxes,
            "loss_giou": box_giou_loss(*pairs).view(per_layer).sum(1) / totals.num_boxes,
            "cardinality_error": self._cardinality_error(logits, targets),
        }
        total = sum(self.weights[name] * terms[name].sum() for name in self.weights)
        last = slice(len(layer) - per_layer[1], None)
        class_error = _class_error(logits[-1, image[last], query[last]], matched_labels[last])
        return total, {**_name_by_layer(terms), "class_error": class_error}

    def proposal_loss(
        self,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: list[dict[str, Tensor]],
        totals: BatchTotals,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the encoder's proposals, which learn boxes and "some object", class 0.

        Args:
            logits: (B, S, C'), one proposal per token.
            pred_boxes: (B, S, 4), (cx, cy, w, h) in [0, 1].
            labels: as in a call.
            totals: the queries' own; sigmoids divide by the number of objects alone.

        Returns:
            The weighted total, and its unweighted terms, with the suffix `_enc`.
        """
        objects = [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in labels]
        total, terms, _ = self.match_and_compare(logits[None], pred_boxes[None], objects, totals)
        terms.pop("class_error")
        return total, {f"{name}_enc": value for name, value in terms.items()}

    @torch.compiler.disable  # as matching
    def mean_with_groups(
        self,
        loss: Tensor,
        logits: Tensor,
        pred_boxes: Tensor,
        labels: list[dict[str, Tensor]],
        totals: BatchTotals,
    ) -> Tensor:
        """Mean of a loss and of those of G further groups of queries, each matched by itself.

        Args:
            loss: of the queries that detect.
            logits: (N, B * G, Q, C'), an image's groups together.
            pred_boxes: (N, B * G, Q, 4), (cx, cy, w, h) in [0, 1].
            labels: as in a call, per image.
            totals: of the queries that detect.
        """
        num_groups = logits.shape[1] // len(labels)
        repeated = [target for target in labels for _ in range(num_groups)]
        try:
            of_groups, _, _ = self.match_and_compare(logits, pred_boxes, repeated, totals)
        except NonFinitePredictionError as error:
            images = sorted({index // num_groups for index in error.images})
            raise NonFinitePredictionError(
                "Predictions of a further group of queries hold NaN or infinity, those of images "
                f"{images}.",
                images,
            ) from error
        return (loss + of_groups) / (1 + num_groups)

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
    matcher = HungarianMatcher(
        classification, config.class_cost, config.bbox_cost, config.giou_cost
    )
    return DetectionCriterion(
        classification,
        matcher,
        class_weight,
        config.bbox_loss_coefficient,
        config.giou_loss_coefficient,
    )


def _flatten(matches: Matches, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layer, image, query and object of every pair, each (N * P,), layer by layer."""
    columns = [
        torch.stack([torch.full_like(query, layer), torch.full_like(query, image), query, index])
        for layer, images in enumerate(matches)
        for image, (query, index) in enumerate(images)
    ]
    layer, image, query, index = torch.cat(columns, dim=1).to(device, non_blocking=True)
    return layer, image, query, index


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
