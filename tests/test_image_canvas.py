"""Protects how images of different sizes come onto one canvas; pixels: test_image_processing."""

import torch

from hf_detr.image_canvas import group_by_shape, make_pixel_mask, stack_images, zero_margins


def test_groups_of_equal_images() -> None:
    """Protects batches: equal shape and dtype together, in order, or each alone if asked."""
    images = [torch.zeros(3, 2, 2), torch.zeros(3, 2, 3), torch.zeros(3, 2, 2)]
    assert group_by_shape(images, disable_grouping=None) == [[0, 2], [1]]
    assert group_by_shape(images, disable_grouping=True) == [[0], [1], [2]]
    images[2] = images[2].to(torch.uint8)
    assert group_by_shape(images, disable_grouping=False) == [[0], [1], [2]]


def test_bytes_are_stacked_channels_last() -> None:
    """Protects the memory layout that makes resizing fast, and the values in it."""
    images = [torch.randint(256, (3, 4, 5), dtype=torch.uint8) for _ in range(2)]
    stacked = stack_images(images)
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    assert (stacked == torch.stack(images)).all()


def test_mask_and_margins() -> None:
    """Protects 1 on real pixels and 0 on padding, at the bottom and the right."""
    mask = make_pixel_mask([(2, 3), (1, 1)], (2, 4), torch.device("cpu"))
    assert mask.tolist() == [[[1, 1, 1, 0], [1, 1, 1, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]]]
    canvas = torch.ones(2, 3, 3)
    zero_margins(canvas, 2, 1)
    assert canvas.sum() == 4 and (canvas[:, :2, :1] == 1).all()
