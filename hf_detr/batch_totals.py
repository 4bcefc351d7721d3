"""What losses are divided by: the objects and queries of a whole batch.

A batch may be spread over processes, and over several backward passes when gradients are
accumulated. Its loss, and so the learned weights, don't depend on how it is spread as long as
every part is divided by what the whole batch holds. That is known from the labels alone: every
object of an image gets a query, while there are queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .losses import mean_over_processes
from .processes import num_processes


@dataclass(frozen=True)
class BatchTotals:
    """Counts of a whole batch, divided by the number of processes; scalars, float32.

    Attributes:
        num_boxes: objects, never less than one in the whole batch.
        num_matched: queries with an object, in one decoder layer.
        num_unmatched: queries without.
    """

    num_boxes: Tensor
    num_matched: Tensor
    num_unmatched: Tensor


def count_batch(counts: Sequence[int], num_queries: int, device: torch.device) -> BatchTotals:
    """Totals over all processes; every one of them must call this at the same time.

    Args:
        counts: number of objects of each image of this process's share.
        num_queries: queries per image.
        device: where the totals are wanted.
    """
    matched = sum(min(count, num_queries) for count in counts)
    sums = torch.tensor(
        [sum(counts), matched, len(counts) * num_queries - matched], dtype=torch.float32
    )
    totals = mean_over_processes(sums.to(device, non_blocking=True))
    num_boxes, num_matched, num_unmatched = totals.unbind()
    # Deviation: the original asks for one object per process, so that the loss of a batch with
    # fewer would depend on the number of processes.
    return BatchTotals(num_boxes.clamp(min=1 / num_processes()), num_matched, num_unmatched)
