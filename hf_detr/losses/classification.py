"""How queries are classified: one object decides head width, prior, cost, loss and scores.

The matcher, the criterion and the post-processing all use the same object, so a softmax matcher
can't be combined with a sigmoid loss.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .loss_terms import LossNormalizers, sigmoid_focal_loss


class SoftmaxClassification:
    """Softmax over the classes and one more, "no object", which is the last logit (DETR).

    Args:
        num_labels: number of classes C, without "no object".
        eos_coefficient: weight of "no object" in the loss; most queries see no object, and at
            full weight they would drown the others (paper: 0.1).
    """

    # Probability of every class in a fresh model; None keeps torch's initial class head.
    prior_probability: float | None = None

    def __init__(self, num_labels: int, eos_coefficient: float) -> None:
        self.num_labels = num_labels
        self.eos_coefficient = eos_coefficient

    @property
    def num_logits(self) -> int:
        """Logits of a query, C + 1."""
        return self.num_labels + 1

    def cost(self, logits: Tensor, class_labels: Tensor) -> Tensor:
        """Matching cost `-p(class of the target)` (DETR, Section 3.1).

        Args:
            logits: (N, B, Q, C + 1), float32.
            class_labels: (B, T) in 0 … C-1.

        Returns:
            (N, B, Q, T), in [-1, 0].
        """
        index = class_labels[None, :, None].expand(*logits.shape[:3], -1)  # (N, B, Q, T)
        return -logits.softmax(-1).gather(-1, index)

    def loss(self, logits: Tensor, target_classes: Tensor, normalizers: LossNormalizers) -> Tensor:
        """Weighted cross-entropy, one mean per decoder layer (DETR, Eq. 2).

        Args:
            logits: (N, B, Q, C + 1), float32.
            target_classes: (N, B, Q); C marks a query without an object.
            normalizers: counts of the whole batch; the mean is over its queries' weights.

        Returns:
            (N,).
        """
        weight = logits.new_ones(self.num_logits)
        weight[-1] = self.eos_coefficient
        loss = F.cross_entropy(
            logits.flatten(0, 2), target_classes.flatten(), weight, reduction="none"
        )
        # Deviation: the original divides by the weight of the process's own queries, so its loss
        # depends on how a batch is spread over processes.
        weights = normalizers.num_matched + self.eos_coefficient * normalizers.num_unmatched
        return loss.view(len(logits), -1).sum(1) / weights.clamp(min=1e-6)

    def num_predicted_objects(self, logits: Tensor) -> Tensor:
        """Queries (N, B) whose best class is not "no object"; for logging."""
        return (logits.argmax(-1) != self.num_labels).sum(-1)

    @staticmethod
    def detections(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One detection per query: its best class of logits (B, Q, C + 1) other than "no object".

        Returns:
            Scores in [0, 1], labels, and the query each detection comes from; all (B, Q).
        """
        scores, labels = logits.float().softmax(-1)[..., :-1].max(-1)
        query_indices = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
        return scores, labels, query_indices

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Probabilities (B, Q, C) of the classes, without "no object"."""
        return logits.float().softmax(-1)[..., :-1]

    @staticmethod
    def best_classes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and labels (B, Q) of each query's best class, and whether that is an object."""
        scores, labels = logits.float().softmax(-1).max(-1)
        return scores, labels, labels != logits.shape[-1] - 1


class SigmoidFocalClassification:
    """An independent sigmoid per class, trained by the focal loss; no object is all zeros.

    Args:
        num_labels: number of classes C; there is no logit for "no object".
        focal_alpha: weight of the object's class against the others.
        focal_gamma: how much less a logit counts that is right already.
    """

    # Nearly all logits should be 0, so the class head starts there (arXiv 1708.02002, 3.3).
    prior_probability: float | None = 0.01

    def __init__(self, num_labels: int, focal_alpha: float, focal_gamma: float = 2.0) -> None:
        self.num_labels = num_labels
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @property
    def num_logits(self) -> int:
        """Logits of a query, C."""
        return self.num_labels

    def cost(self, logits: Tensor, class_labels: Tensor) -> Tensor:
        """Matching cost (N, B, Q, T): focal loss of the target's class as a 1, less that as a 0.

        Arguments are those of `SoftmaxClassification`, with C logits.
        """
        index = class_labels[None, :, None].expand(*logits.shape[:3], -1)  # (N, B, Q, T)
        p = logits.gather(-1, index).sigmoid()
        alpha, gamma, eps = self.focal_alpha, self.focal_gamma, 1e-8
        as_one = alpha * (1 - p) ** gamma * -(p + eps).log()
        as_zero = (1 - alpha) * p**gamma * -(1 - p + eps).log()
        return as_one - as_zero

    def loss(self, logits: Tensor, target_classes: Tensor, normalizers: LossNormalizers) -> Tensor:
        """Focal loss (N,) summed over queries and classes, per object of the whole batch.

        Arguments are those of `SoftmaxClassification`, with C logits.
        """
        one_hot = torch.zeros(
            (*target_classes.shape, self.num_labels + 1), dtype=logits.dtype, device=logits.device
        ).scatter_(-1, target_classes[..., None], 1)[..., :-1]
        loss = sigmoid_focal_loss(logits, one_hot, self.focal_alpha, self.focal_gamma)
        return loss.flatten(1).sum(1) / normalizers.num_boxes

    def num_predicted_objects(self, logits: Tensor) -> Tensor:
        """Queries (N, B) with a class of probability above one half; for logging."""
        # Deviation: the original counts queries whose best class isn't the last one, which is an
        # ordinary class here.
        return (logits.amax(-1) > 0).sum(-1)

    @staticmethod
    def detections(logits: Tensor, top_k: int = 100) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of a query and a class, of logits (B, Q, C); a query may be in several.

        Returns:
            Scores in [0, 1], labels, and queries; all (B, top_k), or (B, Q * C) if that is less.
        """
        num_labels = logits.shape[-1]
        probabilities = logits.float().sigmoid().flatten(1)
        scores, pairs = probabilities.topk(min(top_k, probabilities.shape[1]))
        return scores, pairs % num_labels, pairs // num_labels

    @staticmethod
    def probabilities(logits: Tensor) -> Tensor:
        """Probabilities (B, Q, C) of the classes, each by itself."""
        return logits.float().sigmoid()

    @staticmethod
    def best_classes(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and labels (B, Q) of each query's best class; any may be an object."""
        scores, labels = logits.float().sigmoid().max(-1)
        return scores, labels, torch.ones_like(labels, dtype=torch.bool)


Classification = SoftmaxClassification | SigmoidFocalClassification
