"""Batches: pixels and labels of the collator, and grouping by size."""

import pytest
import torch
from torch import Tensor

from hf_detr import (
    DetectionCollator,
    DetrImageProcessor,
    SizeGroupedBatches,
    make_evaluation_transform,
)

from ..tiny import random_sample, tiny_detector


def test_collator_after_evaluation_transform_equals_the_processor() -> None:
    """Evaluation and inference get exactly the same inputs."""
    size = {"shortest_edge": 60, "longest_edge": 96}
    processor, transform = DetrImageProcessor(size=size), make_evaluation_transform(**size)
    samples = [
        random_sample(48, 64, 3, 1),
        random_sample(30, 70, 0, 2),
        random_sample(80, 40, 1, 3),
    ]
    batch = DetectionCollator(processor)([transform(*sample) for sample in samples])
    images = [image for image, _ in samples]
    expected = processor(images, input_data_format="channels_first", return_tensors="pt")
    assert set(batch) == {"pixel_values", "pixel_mask", "labels"}
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["pixel_mask"], expected["pixel_mask"])


def test_labels_are_relative_to_each_image() -> None:
    """Boxes are relative to the image, not to the padded batch."""
    samples = [random_sample(48, 64, 2, 1, masks=True), random_sample(20, 32, 1, 2, masks=True)]
    batch = DetectionCollator(DetrImageProcessor())(samples)
    for (image, target), label, mask in zip(
        samples, batch["labels"], batch["pixel_mask"], strict=True
    ):
        height, width = image.shape[-2:]
        assert label["size"].tolist() == [height, width] and mask.sum() == height * width
        center, extent = label["boxes"][:, :2], label["boxes"][:, 2:]
        corners = torch.cat([center - extent / 2, center + extent / 2], dim=-1)
        corners = corners * torch.tensor([width, height, width, height])
        torch.testing.assert_close(corners, target["boxes"].as_subclass(Tensor))
        assert label["masks"].shape[-2:] == batch["pixel_values"].shape[-2:]
        assert (label["masks"][:, :height, :width] == target["masks"]).all()
        assert label["masks"].sum() == target["masks"].sum()
        assert label["image_id"] == target["image_id"]
        assert all(type(value) is Tensor for value in label.values())


def test_three_pixels_wide() -> None:
    """A width of three isn't mistaken for the channels."""
    batch = DetectionCollator(DetrImageProcessor())([random_sample(20, 3)])
    assert batch["pixel_values"].shape == (1, 3, 20, 3)


def test_model_takes_a_batch() -> None:
    """A collated batch gives a loss, with an image without objects too."""
    batch = DetectionCollator(DetrImageProcessor())(
        [random_sample(64, 96), random_sample(80, 64, 0)]
    )
    assert tiny_detector()(**batch).loss.isfinite()


def test_batches_have_one_size_and_every_image_once() -> None:
    """No batch needs padding, and no image is missing or duplicated."""
    sizes = [(4, 6), (8, 8), (4, 6), (6, 4), (4, 6), (8, 8)]
    batches = list(SizeGroupedBatches(sizes, batch_size=2))
    assert batches == [[1, 5], [0, 2], [4], [3]]
    shards = [SizeGroupedBatches(sizes, 2, rank, 3) for rank in range(3)]
    assert [len(shard) for shard in shards] == [2, 1, 1]
    assert sorted(map(tuple, batches)) == sorted(tuple(b) for shard in shards for b in shard)


def test_invalid_settings_of_batches_raise() -> None:
    """Invalid settings don't cause an empty or endless evaluation."""
    with pytest.raises(ValueError, match="batch_size is 0"):
        SizeGroupedBatches([(1, 1)], 0)
    with pytest.raises(ValueError, match="rank is 2; expected 0 to world_size - 1 = 1"):
        SizeGroupedBatches([(1, 1)], 1, rank=2, world_size=2)
