"""Batches: pixels and labels of the collator, and grouping by size."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hf_detr import (
    DetectionCollator,
    DetrImageProcessor,
    PackingCollator,
    SizeGroupedBatches,
    make_evaluation_transform,
)
from hf_detr.data.batches import pack_batch

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


def assert_equal_inputs(got: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare all tensors bit for bit, with their types."""
    assert got.keys() == expected.keys()
    pairs = [(got[key], expected[key]) for key in got if key != "labels"]
    for label, other in zip(got["labels"], expected["labels"], strict=True):
        assert list(label) == list(other)
        pairs += [(label[key], other[key]) for key in label]
    for one, other in pairs:
        assert type(one) is Tensor and one.dtype == other.dtype and torch.equal(one, other)


def some_samples(masks: bool = False) -> list[Any]:
    """Make samples of different sizes, without objects, and with additional values."""
    samples = [
        random_sample(48, 64, 3, 1, masks=masks),
        random_sample(30, 70, 0, 2, masks=masks),
        random_sample(48, 31, 1, 3, masks=masks),
    ]
    samples[0][1]["keypoints"] = torch.rand(6, 3)
    samples[2][1]["weight"] = torch.tensor(0.5, dtype=torch.float64)
    return samples


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pad_size": {"height": 50, "width": 80}},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"image_mean": 0.4, "image_std": 0.3, "rescale_factor": 0.01},
        {"image_mean": [0.4], "image_std": [0.3], "do_convert_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["bytes", "floats", "mixed"])
def test_packed_batches_equal_the_collator_s(settings: dict[str, Any], kind: str) -> None:
    """Unpacked batches are those of `DetectionCollator`, bit for bit."""
    processor, samples = DetrImageProcessor(**settings), some_samples(masks=True)
    for index in {"bytes": (), "floats": (0, 1, 2), "mixed": (1,)}[kind]:
        samples[index] = samples[index][0] / 255, samples[index][1]
    batch = PackingCollator(processor)(samples)
    assert len(batch) == 3
    # Floats can't be sent as bytes without loss.
    assert (batch.pixels.dtype == torch.uint8) == (kind == "bytes")
    expected = DetectionCollator(processor)(samples)
    unpacked = batch.unpack(processor)
    assert_equal_inputs(unpacked, expected)
    assert unpacked["pixel_values"].is_contiguous(memory_format=torch.channels_last)
    assert_equal_inputs({"labels": batch.labels()}, {"labels": expected["labels"]})
    classes = [{"class_labels": label["class_labels"]} for label in expected["labels"]]
    assert_equal_inputs({"labels": batch.labels(keys=("class_labels",))}, {"labels": classes})


def test_packed_batches_without_padding() -> None:
    """Images of one size have no mask if the processor doesn't pad."""
    processor, samples = DetrImageProcessor(do_pad=False), [random_sample(), random_sample()]
    expected = DetectionCollator(processor)(samples)
    assert "pixel_mask" not in expected
    assert_equal_inputs(PackingCollator(processor)(samples).unpack(processor), expected)
    samples = [(image / 255, target) for image, target in samples]
    expected = DetectionCollator(processor)(samples)
    assert_equal_inputs(PackingCollator(processor)(samples).unpack(processor), expected)


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_packed_images_that_are_resized(resample: int, channels: int) -> None:
    """Resized images are those of the processor."""
    processor = DetrImageProcessor(
        size={"shortest_edge": 37, "longest_edge": 60}, resample=resample, do_convert_rgb=True
    )
    images = [random_sample(height, 44)[0].as_subclass(Tensor) for height in (48, 90)]
    images = [image[[0, 1, 2, 0][:channels]] for image in images]
    expected = processor(images, input_data_format="channels_first", return_tensors="pt")
    batch = pack_batch(images, [{}, {}], processor, do_resize=True)
    assert batch.pixels.dtype == torch.uint8
    assert_equal_inputs(batch.unpack(processor), {**expected, "labels": [{}, {}]})


def test_workers_send_two_tensors() -> None:
    """A packed batch crosses to the training process as bytes of pixels and of targets."""
    processor, samples = DetrImageProcessor(), some_samples()
    collator = PackingCollator(processor)
    (batch,) = DataLoader(samples, 3, collate_fn=collator, num_workers=1)
    tensors = [value for value in vars(batch).values() if isinstance(value, Tensor)]
    assert [tensor.dtype for tensor in tensors] == [torch.uint8, torch.uint8]
    assert tensors[0].nbytes == 3 * 3 * 48 * 70 and tensors[1].nbytes < 1000
    assert_equal_inputs(batch.unpack(processor), DetectionCollator(processor)(samples))


def test_memory_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both tensors of a batch are pinned, and nothing is lost."""
    pinned = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    processor, samples = DetrImageProcessor(), some_samples()
    batch = PackingCollator(processor)(samples).pin_memory()
    assert batch.pixels is pinned[0] and batch.target_bytes is pinned[1]
    assert_equal_inputs(batch.unpack(processor), DetectionCollator(processor)(samples))


def test_unpacking_does_not_wait_for_the_device() -> None:
    """No step needs a value from the device, on which everything arrives."""
    processor, samples = DetrImageProcessor(), some_samples(masks=True)
    inputs = PackingCollator(processor)(samples).unpack(processor, "meta")
    expected = DetectionCollator(processor)(samples)
    for one, other in zip(inputs["labels"], expected["labels"], strict=True):
        assert all(one[key].is_meta and one[key].shape == other[key].shape for key in other)
    for key in ("pixel_values", "pixel_mask"):
        assert inputs[key].is_meta and inputs[key].shape == expected[key].shape


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
