"""Tests prediction: batching, order, memory and errors."""

import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from hf_detr import DetrImageProcessor, predict, stream_predictions
from hf_detr.inference.prediction import WAITING_BATCHES, in_eval_mode, stream_with_sizes
from hf_detr.inference.record_attention import record_attention
from hf_detr.layers import folded_backbone
from hf_detr.models.object_detector import ObjectDetector
from hf_detr.models.segmentation import Segmenter

from ..models.test_segmentation import tiny_segmenter
from ..some_data import write_image
from ..tiny import tiny_detector

SIZE = {"shortest_edge": 64, "longest_edge": 96}


@pytest.fixture(scope="module")
def detector() -> ObjectDetector:
    """A random detector, whose queries all count at threshold 0."""
    return tiny_detector("detr")


@pytest.fixture(scope="module")
def processor() -> DetrImageProcessor:
    return DetrImageProcessor(size=SIZE)


def confident_segmenter() -> Segmenter:
    """A model with one query that always predicts a large object of class 2."""
    model = tiny_segmenter(num_queries=1)
    with torch.no_grad():
        model.detector.class_labels_classifier.bias[2] = 20
        model.mask_head.out_lay.bias.fill_(5)
    return model


def test_batches_do_not_change_results(
    detector: ObjectDetector, processor: DetrImageProcessor, tmp_path: Path
) -> None:
    """Files, PIL images and arrays of two sizes give the same results as single images (1e-4)."""
    shapes = [(40, 50), (50, 40), (40, 50), (50, 40), (40, 50)]
    files = [write_image(tmp_path / f"{i}.png", *shape, seed=i) for i, shape in enumerate(shapes)]
    opened = [PIL.Image.open(file) for file in files]
    images = [files[0], opened[1], np.asarray(opened[2]), *files[3:]]
    together = predict(detector, processor, images, threshold=0, batch_size=2, progress=False)
    assert len(together) == 5
    for image, shape, result in zip(opened, shapes, together, strict=True):
        with torch.no_grad():
            outputs = detector(**processor(image, return_tensors="pt"))
        (alone,) = processor.post_process_object_detection(outputs, 0, [shape])
        assert len(result["scores"]) == 7
        assert_close(result, alone, atol=1e-4, rtol=1e-4)


def test_one_image_and_a_batched_array(
    detector: ObjectDetector, processor: DetrImageProcessor
) -> None:
    """An array is one image, or with four axes a batch of images."""
    images = torch.randint(256, (2, 3, 40, 50), dtype=torch.uint8)
    both = predict(detector, processor, images, threshold=0, progress=False)
    (one,) = predict(detector, processor, images[1], threshold=0, progress=False)
    assert_close(both[1], one, atol=1e-4, rtol=1e-4)


def test_images_of_other_channels() -> None:
    """Images have the channels of the processor's mean, and no others."""
    detector = tiny_detector("detr", num_channels=6)
    processor = DetrImageProcessor(size=SIZE, image_mean=[0.5] * 6, image_std=[0.25] * 6)
    images = [np.full((40, 50, 6), value, np.uint8) for value in (20, 200)]
    results = predict(detector, processor, images, threshold=0, progress=False)
    assert not torch.equal(results[0]["boxes"], results[1]["boxes"])
    with pytest.raises(ValueError, match="image 1 has .* 3 channels; expected 6"):
        predict(detector, processor, [images[0], images[1][..., :3]], progress=False)


def test_images_are_read_lazily(detector: ObjectDetector, processor: DetrImageProcessor) -> None:
    """Only a few batches of many images with different sizes are in memory."""
    read = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal read
        for extra in range(24):
            read += 1
            yield np.zeros((40, 41 + 3 * extra, 3), dtype=np.uint8)

    most, done = 0, []
    for index, _ in stream_predictions(detector, processor, images(), batch_size=2):
        most = max(most, read - len(done))
        done.append(index)
    assert sorted(done) == list(range(24))
    assert most <= WAITING_BATCHES * 2


def test_bad_images_are_named(
    detector: ObjectDetector, processor: DetrImageProcessor, tmp_path: Path
) -> None:
    """Invalid images raise an error with index and name, or are skipped by on_bad_image."""
    (tmp_path / "note.txt").write_text("no image")
    images = [np.zeros((40, 50, 3), dtype=np.uint8), tmp_path / "note.txt"] * 2
    with pytest.raises(ValueError, match="image 1 .*note.txt.* can't be"):
        predict(detector, processor, images, progress=False)
    with pytest.raises(TypeError, match="image 0 is a int"):
        predict(detector, processor, [5], progress=False)
    with pytest.raises(ValueError, match="image 0 is a batch of 2 images"):
        predict(detector, processor, [images[::2]], progress=False)
    errors: dict[int, Exception] = {}
    results = stream_predictions(detector, processor, images, on_bad_image=errors.__setitem__)
    assert sorted(index for index, _ in results) == [0, 2] and sorted(errors) == [1, 3]
    with pytest.raises(ValueError, match="batch_size is 0"):
        predict(detector, processor, images, batch_size=0)


def some_images() -> Iterator[np.ndarray]:
    """21 images of three sizes, the 4th of which can't be read."""
    random = np.random.default_rng(0)
    for number in range(21):
        size = (40, 40 + 10 * (number % 3), 3)
        yield random.integers(0, 256, size, dtype=np.uint8) if number != 4 else "no image"


def test_threads_read_the_next_images(
    detector: ObjectDetector, processor: DetrImageProcessor
) -> None:
    """With workers, functions are called in threads, a bounded number ahead; results are equal."""
    read: list[tuple[int, str]] = []

    def reader(number: int, image: np.ndarray) -> Callable[[], np.ndarray]:
        def read_image() -> np.ndarray:
            read.append((number, threading.current_thread().name))
            return image

        return read_image

    runs = []
    for workers in (0, 2):
        errors: dict[int, Exception] = {}
        images = (reader(number, image) for number, image in enumerate(some_images()))
        given = (detector, processor, images, 0, 2, errors.__setitem__, workers)
        found = []
        for index, result in stream_predictions(*given):
            found.append((index, result["boxes"]))
            assert max(number for number, _ in read) < len(found) + 2 * WAITING_BATCHES + 2 + 2 + 1
        assert list(errors) == [4] and len({name for _, name in read}) <= max(workers, 1)
        assert all((name == "MainThread") == (not workers) for _, name in read)
        runs.append(found)
        read.clear()
    assert [index for index, _ in runs[0]] == [index for index, _ in runs[1]]
    assert all(torch.equal(one[1], other[1]) for one, other in zip(*runs, strict=True))
    with pytest.raises(ValueError, match="num_workers is -1; expected at least 0"):
        next(stream_predictions(detector, processor, [], num_workers=-1))
    with pytest.raises(ValueError, match="image 4 .*can't be"):
        list(stream_predictions(detector, processor, some_images(), num_workers=2))


def test_groups_have_their_own_batches(
    detector: ObjectDetector, processor: DetrImageProcessor
) -> None:
    """A run from a later group on has exactly the results of a run from the beginning."""

    def run(images: Iterator[np.ndarray]) -> list[tuple[int, tuple[int, int], Any]]:
        given = detector, processor, images, 0, 4, lambda index, error: None
        results = stream_with_sizes(*given, group_size=6)
        return [(index, size_hw, result["boxes"]) for index, size_hw, result in results]

    whole = run(some_images())
    assert [index // 6 for index, _, _ in whole] == [0] * 5 + [1] * 6 + [2] * 6 + [3] * 3
    later = run(islice(some_images(), 12, None))
    for (index, size_hw, boxes), (number, other_hw, others) in zip(whole[11:], later, strict=True):
        assert index == number + 12 and size_hw == other_hw == (40, 40 + 10 * (index % 3))
        assert torch.equal(boxes, others)


def test_stream_is_closed_by_its_own_thread(
    detector: ObjectDetector, processor: DetrImageProcessor
) -> None:
    """Garbage collection can close an abandoned stream in one of the threads that read images."""
    received, closed = threading.Event(), Queue()

    def close() -> np.ndarray:
        received.wait()
        try:
            closed.put(stream.close())
        except RuntimeError as error:
            closed.put(error)
        return image

    image = np.zeros((40, 50, 3), dtype=np.uint8)
    images = iter([image, image, close])
    stream = stream_with_sizes(detector, processor, images, batch_size=2, num_workers=1)
    next(stream)
    received.set()
    assert closed.get() is None


def test_segmentation_models_give_segments(processor: DetrImageProcessor) -> None:
    """Segmentation maps have the image's size, and every segment has a label."""
    images = [np.zeros((40, 50, 3), dtype=np.uint8), np.full((60, 30, 3), 200, dtype=np.uint8)]
    results = predict(confident_segmenter(), processor, images, progress=False)
    assert [tuple(result["segmentation"].shape) for result in results] == [(40, 50), (60, 30)]
    for result in results:
        (segment,) = result["segments_info"]
        assert segment["label_id"] == 2 and (result["segmentation"] == segment["id"]).any()
        assert result["labels"].tolist() == [2]


def test_modes_are_restored() -> None:
    """Modules in training and in eval mode are restored to their modes."""
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).train()
    model[1].eval()
    with in_eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_folded_backbone_is_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folded backbone is computed once, and dropped by training mode."""
    monkeypatch.setattr(folded_backbone, "LEAST_PIXELS", 0)
    model, processor = tiny_detector("detr"), DetrImageProcessor(size=SIZE)
    folded, image = model.model.backbone.folded, np.zeros((40, 50, 3), np.uint8)
    predict(model, processor, image)
    copied = folded.copy
    assert copied is not None
    predict(model, processor, image)
    assert folded.copy is copied
    predict(model.train(), processor, image)
    assert folded.copy is None


@pytest.mark.parametrize("do_normalize", [True, False])
def test_images_are_read_as_the_processor_reads_them(do_normalize: bool) -> None:
    """Floats with do_rescale=False are read as by the image processor, in 0 … 255 or normalized."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (3, 40, 50), generator=generator).float()
    statistics = {"image_mean": [123.0, 117.0, 104.0], "image_std": [58.0, 57.0, 57.0]}
    processor = DetrImageProcessor(
        size=SIZE, do_rescale=False, do_normalize=do_normalize, **statistics
    )
    if not do_normalize:
        image = image / 58 - 2
    model = tiny_detector("detr")
    with torch.no_grad():
        outputs = model(**processor(image, return_tensors="pt"))
    [expected] = processor.post_process_object_detection(outputs, 0, [(40, 50)])
    [found] = predict(model, processor, image, threshold=0)
    [record] = record_attention(model, processor, image)
    assert_close(found["boxes"], expected["boxes"], atol=1e-3, rtol=0)
    assert_close(record.boxes_xyxy, expected["boxes"], atol=1e-3, rtol=0)
    assert record.image.min() >= 0 and 0.5 < record.image.max() <= 1
