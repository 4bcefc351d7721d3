"""Denoising: training queries that start from noised objects and learn to restore them.

Such a query knows its object, so nothing is matched and the decoder learns from the first step on
(DN-DETR; arXiv 2203.01305). Contrastive denoising adds a second query for each, with more noise,
that learns "no object" (DINO; arXiv 2203.03605, Section 3.3).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers.position_encoding import encode_points
from ..losses.targets import Targets, prepare_targets
from ..ops.box_ops import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from .configuration_checks import MOST
from .heads import MLP, average_rows
from .training_queries import Queries, QuerySet, TrainingQueries

COUNTS = range(1, MOST + 1)  # of denoising queries
EPS = 1e-3  # least distance of a noised box's numbers from 0 and 1
NUM_KINDS = 2  # of noised queries: those that restore the object, and those that reject it


class Noise(NamedTuple):
    """Random numbers for the G groups of T objects of B images, first less noise, then more.

    Attributes:
        label_draws: (B, G, 2, T) in [0, 1); labels change where it is low.
        other_labels: (B, G, 2, T) in 0 … C-1.
        directions: (B, G, 2, T, 4), -1 or 1 for each corner's coordinates.
        distances: (B, G, 2, T, 4) in [0, 1).
    """

    label_draws: Tensor
    other_labels: Tensor
    directions: Tensor
    distances: Tensor


class Denoising(nn.Module):
    """Makes training queries of a batch's objects, and holds what these queries alone need.

    Args:
        num_labels: number of classes C.
        width: D.
        num_denoising_queries: pairs of queries per image; as many groups of all objects as fit,
            but at least one.
        label_noise_ratio: half of this share of labels is drawn anew.
        box_noise_scale: how far corners move at most, relative to half the box's size; those of
            the second kind move up to twice as far.
        encodes_boxes: whether queries need position embeddings; else the decoder makes its own.

    Raises:
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        num_labels: int,
        width: int,
        num_denoising_queries: int,
        label_noise_ratio: float = 0.5,
        box_noise_scale: float = 0.4,
        encodes_boxes: bool = True,
    ) -> None:
        super().__init__()
        is_number = isinstance(num_denoising_queries, int) and num_denoising_queries in COUNTS
        if not (is_number and 0 <= label_noise_ratio <= 1 and 0 <= box_noise_scale < math.inf):
            raise ValueError(
                f"num_denoising_queries is {num_denoising_queries}, label_noise_ratio "
                f"{label_noise_ratio} and box_noise_scale {box_noise_scale}; expected at least 1 "
                f"(and at most {MOST}), a ratio from 0 to 1, and a finite scale that isn't "
                "negative."
            )
        self.num_denoising_queries = num_denoising_queries
        self.label_noise_ratio = label_noise_ratio
        self.box_noise_scale = box_noise_scale
        # The last one is unused; DINO's checkpoints have it.
        self.label_embeddings = nn.Embedding(num_labels + 1, width)
        self.box_positions = MLP(2 * width, width, width, num_layers=2) if encodes_boxes else None

    @property
    def num_labels(self) -> int:
        """Number of classes C."""
        return self.label_embeddings.num_embeddings - 1

    def resize_classes(self, sources: list[list[int]]) -> None:
        """Change the classes; the embedding of each new one is the mean of those of old ones."""
        average_rows(self.label_embeddings, [*sources, [self.num_labels]])
        self.label_embeddings.num_embeddings = len(sources) + 1

    # The number of queries depends on the labels, and so would the compiled graph.
    @torch.compiler.disable
    def forward(
        self, labels: list[dict[str, Tensor]], num_queries: int, memory: Tensor
    ) -> TrainingQueries:
        """Training queries of a batch.

        Args:
            labels: per image, as the detector gets them.
            num_queries: Q, the detector's own queries.
            memory: (B, S, D), for its batch size and device.

        Raises:
            ValueError, TypeError: if the labels can't be used, see `prepare_targets`.
        """
        targets = prepare_targets(labels, len(memory), memory.device)
        num_groups = max(1, self.num_denoising_queries // max(max(targets.counts), 1))
        return self.make_queries(targets, self.draw_noise(targets, num_groups), num_queries)

    def draw_noise(self, targets: Targets, num_groups: int) -> Noise:
        """Random numbers for a batch's objects."""
        batch_size, most = targets.class_labels.shape
        shape = (batch_size, num_groups, NUM_KINDS, most)
        draw: dict[str, Any] = {"device": targets.boxes.device}
        return Noise(
            torch.rand(shape, **draw),
            torch.randint(self.num_labels, shape, **draw),
            torch.randint(2, (*shape, 4), **draw) * 2.0 - 1,
            torch.rand((*shape, 4), **draw),
        )

    def make_queries(self, targets: Targets, noise: Noise, num_queries: int) -> TrainingQueries:
        """Training queries (B, X, …) of a batch's objects, X = 2 G T, group by group.

        A group attends to itself and to the detector's own queries, `num_queries` of them.
        """
        class_labels, boxes = self.add_noise(targets, noise)  # (B, G, 2, T), (B, G, 2, T, 4)
        _, num_groups, _, most = class_labels.shape
        counts = torch.tensor(targets.counts, device=boxes.device)
        is_object = torch.arange(most, device=boxes.device) < counts[:, None]  # (B, T)
        is_object = is_object[:, None, None, :, None]
        contents = self.label_embeddings(class_labels).masked_fill(~is_object, 0)
        contents = contents.flatten(1, 3)  # (B, X, D)
        # As in the official code, which keeps their logit.
        boxes = boxes.masked_fill(~is_object, 0.5).clamp(EPS, 1 - EPS).flatten(1, 3)
        positions = None
        if self.box_positions is not None:
            encoding = encode_points(boxes, contents.shape[-1]).to(contents.dtype)
            positions = self.box_positions(encoding)
        group = torch.arange(boxes.shape[1], device=boxes.device) // max(NUM_KINDS * most, 1)
        matches = matches_of_groups(targets.counts, most, num_groups)
        objects = QuerySet(boxes.shape[1], matches, 1 / num_groups, suffix="_dn")
        mask = F.pad(group[:, None] == group, (num_queries, 0), value=True)
        return TrainingQueries(Queries(contents, positions, boxes), mask[None], (objects,))

    def add_noise(self, targets: Targets, noise: Noise) -> tuple[Tensor, Tensor]:
        """Labels (B, G, 2, T) and boxes (B, G, 2, T, 4) with noise, (cx, cy, w, h) in [0, 1]."""
        # The loss reports labels that are out of range.
        class_labels = targets.class_labels.clamp(0, self.num_labels - 1)[:, None, None]
        changes = noise.label_draws < self.label_noise_ratio / 2
        class_labels = torch.where(changes, noise.other_labels, class_labels)
        half = targets.boxes[:, None, None, :, 2:].repeat(1, 1, 1, 1, 2) / 2  # (B, 1, 1, T, 4)
        farther = torch.arange(NUM_KINDS, device=half.device)[:, None, None]  # (2, 1, 1)
        steps = noise.directions * (noise.distances + farther) * self.box_noise_scale * half
        corners = box_cxcywh_to_xyxy(targets.boxes)[:, None, None] + steps
        return class_labels, box_xyxy_to_cxcywh(corners.clamp(0, 1))


def matches_of_groups(
    counts: tuple[int, ...], most: int, num_groups: int
) -> list[tuple[Tensor, Tensor]]:
    """Per image its queries of the first kind, in all groups, and the objects they restore."""
    matches = []
    for count in counts:
        objects = torch.arange(count).expand(num_groups, -1)
        first = torch.arange(num_groups)[:, None] * (NUM_KINDS * most)
        matches.append(((first + objects).flatten(), objects.flatten()))
    return matches
