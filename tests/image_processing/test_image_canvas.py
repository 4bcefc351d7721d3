"""Batching of images of different sizes on a canvas."""

import torch

from hf_detr.image_processing.image_canvas import (
    BLOCK,
    group_by_shape,
    make_pixel_mask,
    stack_images,
    write_pixels,
    zero_margins,
)


def test_groups_of_equal_images() -> None:
    """Images of equal shape and dtype form a group, but on the CPU each image is one."""
    images = [torch.zeros(3, 2, 2), torch.zeros(3, 2, 3), torch.zeros(3, 2, 2)]
    assert group_by_shape(images, disable_grouping=None) == [[0], [1], [2]]
    on_meta = [image.to("meta") for image in images]
    assert group_by_shape(on_meta, disable_grouping=None) == [[0, 2], [1]]
    assert group_by_shape(images, disable_grouping=False) == [[0, 2], [1]]
    assert group_by_shape(images, disable_grouping=True) == [[0], [1], [2]]
    images[2] = images[2].to(torch.uint8)
    assert group_by_shape(images, disable_grouping=False) == [[0], [1], [2]]


def test_bytes_are_stacked_channels_last() -> None:
    """uint8 images have the memory layout that makes resizing fast."""
    images = [torch.randint(256, (3, 4, 5), dtype=torch.uint8) for _ in range(2)]
    stacked = stack_images(images)
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    assert (stacked == torch.stack(images)).all()
    for image in (images[0], images[0].permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        alone = stack_images([image])
        assert alone.is_contiguous(memory_format=torch.channels_last)
        assert (alone == image).all()


def test_pixels_in_blocks() -> None:
    """All rows of images with several blocks are written."""
    settings = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.1, 0.2, 0.3],
    }
    image = torch.randint(256, (3, 2 * BLOCK + 3, 5), dtype=torch.uint8)
    canvas = torch.full((3, 2 * BLOCK + 3, 5), torch.nan)
    write_pixels(image, canvas, settings)
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("image_mean", "image_std"))
    torch.testing.assert_close(canvas, (image / 255 - mean) / std, atol=1e-5, rtol=0)


def test_mask_and_margins() -> None:
    """The mask is 1 on real pixels and 0 on padding, at the bottom and the right."""
    mask = make_pixel_mask([(2, 3), (1, 1)], (2, 4), torch.device("cpu"))
    assert mask.tolist() == [[[1, 1, 1, 0], [1, 1, 1, 0]], [[1, 0, 0, 0], [0, 0, 0, 0]]]
    canvas = torch.ones(2, 3, 3)
    zero_margins(canvas, 2, 1)
    assert canvas.sum() == 4 and (canvas[:, :2, :1] == 1).all()
