"""Queries that exist in training alone: decoded beside the detector's own, and then left behind.

The detector's own queries come first on the query axis and never attend to the others, so their
states don't depend on them. Training queries that are given noised objects learn to restore them
(denoising); groups of learned queries are matched like the detector's own (Group DETR).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..losses.criterion import LossPart


class Queries(NamedTuple):  # which Accelerate can move between devices, unlike a dataclass
    """The queries that a decoder starts from; a variant leaves out what it doesn't need.

    Attributes:
        contents: (B, Q, D), the states before the first layer.
        positions: (B, Q, D), position embeddings.
        reference_points: (B, Q, 2) as (x, y) or (B, Q, 4) as (cx, cy, w, h) in [0, 1].
        mask: (B or 1, Q, Q), True where a query may attend to another; None if all may.
    """

    contents: Tensor | None = None
    positions: Tensor | None = None
    reference_points: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class QuerySet:
    """Consecutive training queries, and how their predictions enter the loss.

    Attributes:
        num_queries: queries per image.
        matches: per image indices of queries within the set and of the objects that they learn,
            (n,) each, int64 on the CPU; its other queries learn "no object". None matches every
            decoder layer like the detector's own queries.
        weight: factor in the total loss. Sums over objects are divided by the number of objects,
            so a set that has k queries for each takes 1 / k.
        suffix, num_groups: as in `LossPart`.
    """

    num_queries: int
    matches: Sequence[tuple[Tensor, Tensor]] | None = None
    weight: float = 1.0
    suffix: str | None = None
    num_groups: int = 1


@dataclass(frozen=True)
class TrainingQueries:
    """X queries per image that are decoded after the detector's own Q.

    Attributes:
        queries: what the decoder needs of them, (B, X, …) each; `mask` isn't used. Where the
            detector's own refer to points or to nothing, so do these.
        mask: (B or 1, X, Q + X), True where they may attend to the detector's own queries, which
            come first, or to each other.
        sets: they follow one another on the query axis and hold all X queries.
        own_weight: factor of the detector's own queries in the total loss.
    """

    queries: Queries
    mask: Tensor
    sets: tuple[QuerySet, ...]
    own_weight: float = 1.0

    def join(self, own: Queries) -> Queries:
        """The detector's own queries and these, (B, Q + X, …), with the mask of both."""
        contents, positions, reference_points = (
            None if first is None else torch.cat([first, then[..., : first.shape[-1]]], dim=1)
            for first, then in zip(own[:3], self.queries[:3], strict=True)
        )
        num_training = self.mask.shape[1]
        num_own = next(part.shape[1] for part in own if part is not None)
        # Small images may have fewer tokens to propose queries than the detector has queries.
        columns = self.mask[..., self.mask.shape[-1] - num_training :]
        rows = torch.cat([self.mask[..., :num_own], columns], dim=-1)  # (B, X, Q + X)
        is_own = torch.arange(num_own + num_training, device=rows.device) < num_own
        mask = torch.cat([is_own.expand(len(rows), num_own, -1), rows], dim=1)
        return Queries(contents, positions, reference_points, mask)

    def loss_parts(self, logits: Tensor, pred_boxes: Tensor) -> list[LossPart]:
        """How their predictions (N, B, X, …) enter the loss, set by set."""
        sizes = [queries.num_queries for queries in self.sets]
        return [
            LossPart(
                *predictions,
                queries.matches,
                queries.weight,
                queries.suffix,
                num_groups=queries.num_groups,
                source="training queries",
            )
            for queries, *predictions in zip(
                self.sets, logits.split(sizes, dim=2), pred_boxes.split(sizes, dim=2), strict=True
            )
        ]


class QueryGroups(nn.Module):
    """Learned embeddings of G groups of training queries (Group DETR; arXiv 2207.13085).

    A detector's own queries are matched one to one, so an object teaches one query in a step. Each
    further group attends to itself and is matched by itself (Section 3.2): the object teaches one
    query of each, and through them the same decoder and heads.

    Args:
        num_groups: G.
        queries: the embeddings (Q, …) of the detector's own queries, for shape, device and dtype.
    """

    def __init__(self, num_groups: int, queries: nn.Embedding) -> None:
        super().__init__()
        self.num_groups = num_groups
        weight = queries.weight
        # Drawn at random: groups that began as copies would learn the same.
        self.embeddings = nn.Embedding(
            num_groups * len(weight), weight.shape[1], device=weight.device, dtype=weight.dtype
        )

    def forward(
        self, memory: Tensor, prepare_queries: Callable[[Tensor], Queries]
    ) -> TrainingQueries:
        """Training queries for a memory (B, S, D); the loss is the mean over all groups.

        Args:
            memory: for its batch size and device.
            prepare_queries: makes queries of embeddings (B, G * Q, …).
        """
        num_queries = self.embeddings.num_embeddings // self.num_groups
        indices = torch.arange(self.embeddings.num_embeddings, device=memory.device)
        embeddings = self.embeddings(indices).expand(len(memory), -1, -1)
        group = indices // num_queries
        mask = F.pad(group[:, None] == group, (num_queries, 0))  # not to the detector's own
        weight = 1 / (1 + self.num_groups)
        groups = QuerySet(len(indices), weight=weight, num_groups=self.num_groups)
        return TrainingQueries(prepare_queries(embeddings), mask[None], (groups,), weight)
