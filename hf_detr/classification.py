"""How queries are classified: one object decides head width, prior, cost, loss and scores.

The matcher, the criterion and the post-processing all ask the same object, so a softmax matcher
beside a sigmoid loss can't be written.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .losses import mean_over_processes


class SoftmaxClassification:
    """Softmax over the classes and one more, "no object", which is the last logit (DETR).

    Args:
        num_labels: number of classes C, without "no object".
        eos_coefficient: weight of "no object" in the loss; most queries see no object, and at
            full weight they would drown the others (paper: 0.1).
    """

    def __init__(self, num_labels: int, eos_coefficient: float) -> None:
        self.num_labels = num_labels
        self.num_logits = num_labels + 1
        self.eos_coefficient = eos_coefficient

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

    def loss(self, logits: Tensor, target_classes: Tensor, num_boxes: Tensor) -> Tensor:
        """Weighted cross-entropy, one mean per decoder layer (DETR, Eq. 2).

        Args:
            logits: (N, B, Q, C + 1), float32.
            target_classes: (N, B, Q); C marks a query without an object.
            num_boxes: not needed here; the mean is over the weights of all queries.

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
        total_weight = mean_over_processes(weight[target_classes].flatten(1).sum(1))  # (N,)
        return loss.view(len(logits), -1).sum(1) / total_weight.clamp(min=1e-6)

    def num_predicted_objects(self, logits: Tensor) -> Tensor:
        """Queries (N, B) whose best class is not "no object"; for logging."""
        return (logits.argmax(-1) != self.num_labels).sum(-1)

    @staticmethod
    def detections(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One detection per query: its best class other than "no object".

        Args:
            logits: (B, Q, C + 1).

        Returns:
            Scores in [0, 1], labels, and the query each detection comes from; all (B, Q).
        """
        scores, labels = logits.softmax(-1)[..., :-1].max(-1)
        query_indices = torch.arange(labels.shape[-1], device=labels.device).expand_as(labels)
        return scores, labels, query_indices
