"""Protects what losses are divided by: counts known from the labels alone."""

import torch

from hf_detr.batch_totals import count_batch


def test_totals_by_hand() -> None:
    """Protects the counts: objects beyond the queries are counted, but take no query."""
    totals = count_batch([2, 0, 5], num_queries=4, device=torch.device("cpu"))
    assert (totals.num_boxes, totals.num_matched, totals.num_unmatched) == (7, 6, 6)
    assert totals.num_boxes.dtype == torch.float32


def test_no_object_counts_as_one() -> None:
    """Protects batches of empty images from a division by zero."""
    totals = count_batch([0, 0], num_queries=3, device=torch.device("cpu"))
    assert (totals.num_boxes, totals.num_matched, totals.num_unmatched) == (1, 0, 6)
