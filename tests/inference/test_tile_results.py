"""Tests the results of images in tiles, with a model that finds exactly the colored rectangles."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hf_detr import DetrImageProcessor, predict
from hf_detr.data.tile_grid import tile_windows
from hf_detr.inference.prediction import stream_with_sizes
from hf_detr.inference.tile_results import (
    JoinedMasks,
    TileResults,
    crop_masks,
    join_batches,
    join_tiles,
)
from hf_detr.models.outputs import ObjectDetectionOutput, SegmentationOutput

NUM_QUERIES = 60
PROCESSOR = DetrImageProcessor(do_resize=False, do_normalize=False, do_pad=False)
Rectangle = tuple[int, int, int, int, int]  # x0, y0, x1, y1, class


class ExactDetector(nn.Module):
    """Finds the visible part of each rectangle that `picture` draws; with masks the ground too."""

    def __init__(self, with_masks: bool = False) -> None:
        super().__init__()
        self.with_masks, self.batches = with_masks, []
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.config = SimpleNamespace(id2label={0: "red", 1: "green"})

    def forward(self, pixel_values: Tensor, **others: Any) -> ObjectDetectionOutput:
        self.batches.append(tuple(pixel_values.shape))
        found = [self.detect(image) for image in (pixel_values * 255).round().long()]
        logits, boxes, masks = map(torch.stack, zip(*found, strict=True))
        if not self.with_masks:
            return ObjectDetectionOutput(logits=logits, pred_boxes=boxes)
        return SegmentationOutput(logits=logits, pred_boxes=boxes, pred_masks=masks)

    def detect(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = image.shape[1:]
        logits = torch.tensor([0.0, 0, 20]).repeat(NUM_QUERIES, 1)
        boxes = torch.full((NUM_QUERIES, 4), 0.5)
        masks = torch.full((NUM_QUERIES, height, width), -9.0)
        numbers = set(image[0].unique().tolist()) - (set() if self.with_masks else {0})
        for query, number in enumerate(sorted(numbers)):
            mask = image[0] == number
            (top, bottom), (left, right) = (where.aminmax() for where in mask.nonzero().T)
            kind = int(image[1][mask][0])
            # Each rectangle has another score.
            logits[query] = torch.tensor([-9, -9, -0.02 * number]).index_fill(
                0, torch.tensor(kind), 2.0
            )
            corners = torch.stack([left, top, right + 1, bottom + 1]).float()
            center = (corners[:2] + corners[2:]) / 2
            size = torch.tensor([width, height])
            boxes[query] = torch.cat([center / size, (corners[2:] - corners[:2]) / size])
            masks[query, mask] = 9.0
        return logits, boxes, masks


def picture(size_hw: tuple[int, int], rectangles: list[Rectangle]) -> np.ndarray:
    """An image in which red is the rectangle's number, and green its class."""
    pixels = np.zeros((*size_hw, 3), np.uint8)
    for number, (x0, y0, x1, y1, kind) in enumerate(rectangles, 1):
        pixels[y0:y1, x0:x1] = number, kind, 0
    return pixels


def some_rectangles(seed: int, size_hw: tuple[int, int], largest: int) -> list[Rectangle]:
    """Rectangles at random, of which many touch and none covers another."""
    random, taken = np.random.default_rng(seed), np.zeros(size_hw, dtype=bool)
    rectangles: list[Rectangle] = []
    for _ in range(400):
        w, h = random.integers(3, largest, 2).tolist()
        x, y = (
            int(random.integers(0, side - n)) for side, n in zip(size_hw[::-1], (w, h), strict=True)
        )
        if rectangles and random.random() < 0.5:  # beside the latest one
            x, y = rectangles[-1][2], rectangles[-1][1]
        inside = x + w <= size_hw[1] and y + h <= size_hw[0]
        if inside and not taken[y : y + h, x : x + w].any() and len(rectangles) < NUM_QUERIES:
            taken[y : y + h, x : x + w] = True
            rectangles.append((x, y, x + w, y + h, int(random.integers(2))))
    return rectangles


def in_order(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The objects of a result in an order that doesn't depend on it."""
    columns = (result[name].tolist() for name in ("scores", "labels", "boxes"))
    rows = [(round(s, 4), label, *np.round(box, 2)) for s, label, box in zip(*columns, strict=True)]
    return sorted(rows)


@pytest.mark.parametrize(
    ("overlap", "largest"), [(0.2, 10), (0.2, 60), (0.5, 60), (0.2, 150), (0.7, 150)]
)
def test_tiles_find_what_the_whole_image_shows(overlap: float, largest: int) -> None:
    """Protects the joining: objects in the overlap, cut by it, larger than it and than a tile."""
    for seed, size_hw in enumerate([(200, 230), (64, 300), (90, 64), (150, 151)]):
        most = min(largest, *size_hw)
        rectangles = some_rectangles(seed, size_hw, most)
        image, model = picture(size_hw, rectangles), ExactDetector()
        (whole,) = predict(model, PROCESSOR, image, progress=False)
        assert len(whole["boxes"]) == len(rectangles)
        model.batches.clear()
        (joined,) = predict(model, PROCESSOR, image, progress=False, tiles=64, overlap=overlap)
        assert in_order(joined) == in_order(whole)
        assert joined.keys() == whole.keys()
        assert all(joined[name].dtype == whole[name].dtype for name in whole)
        assert (joined["scores"].diff() <= 0).all()
        number = len(tile_windows(size_hw, 64, overlap))
        assert {batch[2:] for batch in model.batches} == {(64, 64)}
        assert [batch[0] for batch in model.batches] == [8] * (number // 8) + [number % 8] * (
            number % 8 > 0
        )


def test_images_that_are_not_larger_are_whole() -> None:
    """Results are the same to the bit, also of images without objects."""
    sizes = (60, 64), (64, 64), (64, 20)
    images = [picture(size, some_rectangles(seed, size, 20)) for seed, size in enumerate(sizes)]
    for with_masks in (False, True):
        model = ExactDetector(with_masks)
        whole = predict(model, PROCESSOR, images, progress=False)
        cut = predict(model, PROCESSOR, images, progress=False, tiles=64)
        for one, other in zip(whole, cut, strict=True):
            assert list(one) == list(other)
            assert all(torch.equal(one[n], other[n]) for n in one if n != "segments_info")
            assert one.get("segments_info") == other.get("segments_info")
    nothing = np.zeros((100, 100, 3), np.uint8)
    given = model, PROCESSOR, nothing, 0.99
    (one,) = predict(*given, progress=False)
    (other,) = predict(*given, progress=False, tiles=64)
    assert other["boxes"].shape == (0, 4) and other["segments_info"] == []
    assert torch.equal(one["segmentation"], other["segmentation"])


def test_segments_are_those_of_the_whole_image() -> None:
    """The map has the image's size, and each segment its own pixels, over all borders."""
    for seed, largest in product(range(2), (30, 90)):
        rectangles = some_rectangles(seed, (150, 170), largest)[:12]
        image, model = picture((150, 170), rectangles), ExactDetector(with_masks=True)
        (whole,) = predict(model, PROCESSOR, image, progress=False)
        (joined,) = predict(model, PROCESSOR, image, progress=False, tiles=64)
        assert list(joined) == list(whole)
        assert joined["segmentation"].dtype == whole["segmentation"].dtype
        found = [{s["score"]: s for s in r["segments_info"]} for r in (whole, joined)]
        assert found[0].keys() == found[1].keys() and len(found[0]) == len(rectangles) + 1
        for score, segment in found[0].items():
            other = found[1][score]
            assert segment["label_id"] == other["label_id"] and segment.keys() == other.keys()
            pixels = whole["segmentation"] == segment["id"]
            assert torch.equal(pixels, joined["segmentation"] == other["id"])
        ids = [segment["id"] for segment in joined["segments_info"]]
        assert ids == list(range(1, len(ids) + 1))


def test_fused_segments_are_one() -> None:
    """Sky in all tiles is one segment, with the area of all its pixels, as in each tile."""
    windows = tile_windows((64, 160), 64)
    sky = {"id": 1, "label_id": 4, "was_fused": True, "score": 0.9, "area": 64 * 20}
    maps = [torch.zeros(64, 64, dtype=torch.int32) for _ in windows]
    for tile in (0, 2):  # not beside each other
        maps[tile][:20] = 1
    results = [{"segmentation": one, "segments_info": [sky] if one.any() else []} for one in maps]
    joined = join_tiles(windows, results)
    assert joined["segments_info"] == [{**sky, "area": 2 * 64 * 20}]
    assert int((joined["segmentation"] == 1).sum()) == 2 * 64 * 20


def test_masks_are_put_together() -> None:
    """Masks of the parts of an object are one mask of the image's size; the best ones are kept."""
    windows = tile_windows((50, 100), 60)
    assert windows.tolist() == [[0, 0, 60, 50], [40, 0, 100, 50]]
    left, right = torch.zeros(2, 50, 60, dtype=torch.bool), torch.zeros(1, 50, 60, dtype=torch.bool)
    left[0, 10:20, 10:], left[1, 30:40, :5], right[0, 10:20, :50] = True, True, True
    results = [
        {"boxes": torch.tensor([[10.0, 10, 60, 20], [0, 30, 5, 40]]), "masks": left},
        {"boxes": torch.tensor([[0.0, 10, 50, 20]]), "masks": right},
    ]
    scores = torch.tensor([0.6, 0.9]), torch.tensor([0.8])
    results = [
        {"scores": score, "labels": torch.zeros(len(score), dtype=torch.int64), **result}
        for score, result in zip(scores, results, strict=True)
    ]
    cropped = [{**result, "masks": crop_masks(result["masks"])} for result in results]
    assert [[(x, y) for x, y, _ in one["masks"]] for one in cropped] == [
        [(10, 10), (0, 30)],
        [(0, 10)],
    ]
    joined = join_tiles(windows, cropped)
    assert joined["scores"].tolist() == pytest.approx([0.9, 0.8])
    assert joined["boxes"].tolist() == [[0, 30, 5, 40], [10, 10, 90, 20]]
    expected = torch.zeros(2, 50, 100, dtype=torch.bool)
    expected[0, 30:40, :5], expected[1, 10:20, 10:90] = True, True
    assert joined["masks"].shape == expected.shape
    assert torch.equal(joined["masks"][:], expected)
    assert torch.equal(joined["masks"][1:2], expected[1:])
    assert join_tiles(windows, cropped, most=1)["scores"].tolist() == pytest.approx([0.9])
    places = [("a", 0, windows), ("b", 0, windows), ("a", 1, windows)]
    batches = [([0], [results[0]]), ([1, 2], [results[0], results[1]])]
    (nothing, (ids, found)) = join_batches(batches, places, 1)
    assert nothing == ([], []) and ids == ["a"] and len(found[0]["masks"]) == 1


def test_empty_masks_are_joined() -> None:
    """A mask without pixels stays empty, and takes none from others."""
    masks = torch.zeros(2, 6, 8, dtype=torch.bool)
    masks[1, 2, 3] = True
    crops = crop_masks(masks)
    assert [(x, y, tuple(crop.shape)) for x, y, crop in crops] == [(0, 0, (0, 0)), (3, 2, (1, 1))]
    assert torch.equal(JoinedMasks((6, 8), [[crop] for crop in crops])[:], masks)
    assert torch.equal(JoinedMasks((6, 8), [crops])[:], masks[1:])


def test_masks_of_tiles_are_kept_as_crops() -> None:
    """Neither the masks of a tile nor those of the joined image are all kept at full size."""
    windows, stored = tile_windows((400, 400), 250), 0
    masks = torch.zeros(30, 250, 250, dtype=torch.bool)
    masks[:, 100:110, 100:110] = True
    result = {
        "scores": torch.linspace(0.5, 0.9, 30),
        "labels": torch.arange(30),
        "boxes": torch.tensor([[100.0, 100, 110, 110]]).repeat(30, 1),
        "masks": masks,
    }
    joining = TileResults()
    for number in range(len(windows)):
        joined = joining.add("a", number, windows, result)
    assert joined["masks"].shape == (30 * len(windows), 400, 400)
    for crops in joined["masks"]._parts:
        stored += sum(crop.untyped_storage().nbytes() for _, _, crop in crops)
    assert stored == 30 * len(windows) * 100
    assert joined["masks"][:5].sum() == 500


def test_large_images_are_not_in_memory_as_tiles() -> None:
    """Only the tiles of some batches are prepared; threads read and prepare the same ones."""
    size_hw = (128, 1500)
    image = picture(size_hw, some_rectangles(0, size_hw, 20))
    ahead = []

    class Counting(DetrImageProcessor):
        def __call__(self, *given: Any, **options: Any) -> Any:
            ahead.append(1)
            return super().__call__(*given, **options)

    processor = Counting(do_resize=False, do_normalize=False, do_pad=False)
    found = []
    for workers in (0, 2):
        model = ExactDetector()
        seen = []
        model.register_forward_hook(lambda *_, seen=seen: seen.append(len(ahead)))
        given = model, processor, [image, "none.png", image[:, :700]], 0.5, 4
        errors: dict[int, Exception] = {}
        results = list(
            stream_with_sizes(*given, errors.__setitem__, workers, group_size=2, tiles=64)
        )
        assert [index for index, _, _ in results] == [0, 2] and list(errors) == [1]
        assert [size_hw for _, size_hw, _ in results] == [(128, 1500), (128, 700)]
        most = max(prepared - 4 * (batch + 1) for batch, prepared in enumerate(seen))
        assert most <= (4 + 2 if workers else 0) + 4
        found.append([in_order(result) for _, _, result in results])
        ahead.clear()
    assert found[0] == found[1]


def test_results_wait_for_all_tiles() -> None:
    """Tiles of several images can come in any order."""
    windows, results = tile_windows((64, 100), 64), TileResults()
    part = {name: torch.empty(0) for name in ("scores", "labels")}
    part["boxes"] = torch.empty(0, 4)
    assert results.add("a", 1, windows, part) is None
    assert results.add("b", 0, windows, part) is None
    joined = results.add("a", 0, windows, part)
    assert joined is not None and joined["boxes"].shape == (0, 4)
