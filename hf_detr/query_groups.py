"""Groups of queries that only learn, beside those that detect (Group DETR; arXiv 2207.13085).

A detector's own queries are matched one to one, so that an object teaches one query in a step.
Every further group is decoded and matched by itself, on the same memory (Section 3.2): the object
teaches one query of each, and through them the same decoder and heads. No group knows of another,
so nothing changes for the queries that detect, and the groups can be left behind after training.
"""

import torch
from torch import Tensor, nn

from .feature_pyramid import FeaturePyramid


class QueryGroups(nn.Module):
    """Learned embeddings of G groups of queries.

    Args:
        num_groups: G.
        queries: the embeddings (Q, …) of the detector's own queries, for shape, device and dtype.
    """

    def __init__(self, num_groups: int, queries: nn.Embedding) -> None:
        super().__init__()
        self.num_groups = num_groups
        weight = queries.weight
        # Drawn anew: groups that began as copies would learn the same.
        self.embeddings = nn.Embedding(
            num_groups * len(weight), weight.shape[1], device=weight.device, dtype=weight.dtype
        )

    def forward(
        self, memory: Tensor, position_embeddings: Tensor, pyramid: FeaturePyramid
    ) -> tuple[Tensor, Tensor, Tensor, FeaturePyramid]:
        """Queries, memory, positions and geometry as a batch of B * G images, an image's together.

        Args:
            memory: (B, S, D).
            position_embeddings: (B, S, D).
            pyramid: geometry of the memory.

        Returns:
            Queries (B * G, Q, …), and the rest repeated G times.
        """
        indices = torch.arange(self.embeddings.num_embeddings, device=memory.device)
        groups = self.embeddings(indices).unflatten(0, (self.num_groups, -1))  # (G, Q, …)

        def repeat(per_image: Tensor) -> Tensor:  # (B * G, …) from (B, …)
            return per_image.repeat_interleave(self.num_groups, dim=0)

        queries = groups.repeat(len(memory), 1, 1)
        return queries, repeat(memory), repeat(position_embeddings), pyramid.apply(repeat)
