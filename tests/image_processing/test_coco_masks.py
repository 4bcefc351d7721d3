"""COCO segmentations: equality with pycocotools, round trips, errors for invalid ones."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.detr.image_processing_detr import binary_mask_to_rle

from hf_detr.image_processing.coco_masks import (
    _unpacked_counts,
    masks_from_segmentation,
    rle_from_mask,
    run_lengths,
)

# Made with pycocotools 2.0.11, numpy 2.4.6 (x86-64) from random polygons and masks (seed 0):
#   polygons: rle = merge(frPyObjects(polygons, h, w)); counts = encode(decode(rle))["counts"]
#   masks: bits = packbits(mask).tobytes().hex(), row-major; counts = encode(mask)["counts"]
FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "coco_masks.json").read_text())
KINDS = sorted({case["kind"] for case in FIXTURE["polygons"]})
NAME = "image_id 7, annotation 3"


def mask_of(*rows: str) -> torch.Tensor:
    """Make a mask (H, W) from rows with '#' inside and '.' outside."""
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])


def random_masks() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1), (1, 9), (9, 1), (5, 7), (7, 5), (33, 20), (130, 90)]
    return [
        torch.rand(shape, generator=generator) < inside
        for shape in shapes
        for inside in (0.0, 0.1, 0.5, 0.9, 1.1)
    ]


# By hand.

L_SHAPE = mask_of("#..", "##.")


def test_uncompressed_run_lengths_are_column_major():
    """The first run is outside."""
    rle = {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    mask = masks_from_segmentation(rle, (2, 3), NAME)
    assert mask.dtype == torch.bool and mask.is_contiguous()
    assert torch.equal(mask, L_SHAPE)
    assert rle_from_mask(L_SHAPE) == rle


def test_empty_runs_are_allowed():
    """An empty run switches between outside and inside too."""
    rle = {"size": [2, 3], "counts": [0, 1, 0, 1, 1, 1, 0, 0, 2, 0]}
    assert torch.equal(masks_from_segmentation(rle, (2, 3), NAME), L_SHAPE)


@pytest.mark.parametrize(
    ("counts", "packed"),
    [
        ([], ""),
        ([0], "0"),
        ([15], "?"),  # 48 + 15
        ([16], "`0"),  # 16 alone would be -16: digits 16 (more follow: + 32), 0
        ([100], "T3"),  # digits 4 (+ 32) and 3
        ([6, 1, 40, 4, 5, 1], "61X13mNM"),  # 40 = 8 + 1 * 32; 4 - 1, 5 - 40 = 29 - 2 * 32, 1 - 4
        ([5, 9, 5, 9, 5], "59500"),  # no change from two before, from the fourth on
        ([0, 17, 0, 1], "0a00@"),  # 1 - 17 = -16 fits into one digit
        ([2**39 - 1], "ooooooo?"),
    ],
)
def test_packed_numbers(counts, packed):
    """Counts are packed as digits of 5 bits, from the fourth on as differences."""
    assert _unpacked_counts(packed, NAME).tolist() == counts


@pytest.mark.parametrize(
    ("polygons", "rows"),
    [
        ([[1, 1, 3, 1, 3, 3, 1, 3]], (".....", ".##..", ".##..", ".....")),
        ([[0, 0, 5, 0, 5, 4, 0, 4]], ("#####",) * 4),
        ([[-9, -9, 2, -9, 2, 2, -9, 2]], ("##...", "##...", ".....", ".....")),
        ([[1, 1, 3, 3, 3, 3, 1, 1]], (".....",) * 4),
        (
            [[0, 0, 1, 0, 1, 1, 0, 1], [3, 2, 5, 2, 5, 4, 3, 4]],
            ("#....", ".....", "...##", "...##"),
        ),
        (
            [[0, 0, 3, 0, 3, 2, 0, 2], [1, 1, 4, 1, 4, 3, 1, 3]],
            ("###..", "####.", ".###.", "....."),
        ),
        # Centres on the boundary: the asymmetric result of pycocotools.
        ([[0, 0, 4, 0, 0, 4, 4, 4]], (".##..", ".....", ".##..", "####.")),
    ],
    ids=["square", "whole image", "corner", "no area", "two parts", "overlap", "hourglass"],
)
def test_polygons_by_hand(polygons, rows):
    """A mask is the union of the polygons."""
    mask = masks_from_segmentation(polygons, (4, 5), NAME)
    assert mask.dtype == torch.bool and mask.is_contiguous()
    assert torch.equal(mask, mask_of(*rows))


def test_run_lengths_by_hand():
    """Runs are row-major, and starts are counted from 1."""
    assert run_lengths(L_SHAPE) == [1, 1, 4, 2]
    assert run_lengths(torch.zeros(2, 3, dtype=torch.bool)) == []


# Against pycocotools and transformers.


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_equal_pycocotools(kind):
    """All pixels are equal."""
    cases = [case for case in FIXTURE["polygons"] if case["kind"] == kind]
    assert len(cases) >= 10
    for case in cases:
        mask = masks_from_segmentation(case["polygons"], tuple(case["size"]), NAME)
        assert torch.equal(mask, masks_from_segmentation(case, tuple(case["size"]), NAME)), case


def test_packed_masks_equal_pycocotools():
    """COCO's strings are read, as str and bytes."""
    for case in FIXTURE["masks"]:
        height, width = case["size"]
        packed_bits = np.frombuffer(bytes.fromhex(case["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed_bits, count=height * width)
        expected = torch.from_numpy(bits).reshape(height, width).bool()
        for counts in (case["counts"], case["counts"].encode()):
            rle = {"size": case["size"], "counts": counts}
            assert torch.equal(masks_from_segmentation(rle, (height, width), NAME), expected)


def test_run_lengths_equal_transformers():
    """Segmentation results are encoded as in transformers."""
    for mask in random_masks():
        assert run_lengths(mask) == binary_mask_to_rle(mask.int())


# Round trips and types of inputs.


def test_masks_survive_run_lengths():
    """Masks are equal after a round trip with each form of counts."""
    for mask in random_masks():
        rle = rle_from_mask(mask)
        assert json.loads(json.dumps(rle)) == rle
        for counts in (rle["counts"], np.array(rle["counts"])):
            back = masks_from_segmentation({**rle, "counts": counts}, tuple(mask.shape), NAME)
            assert torch.equal(back, mask)


def test_starting_point_and_direction_do_not_matter():
    """The order of a polygon's points doesn't change the mask."""
    points = np.random.default_rng(1).uniform(-5, 35, (9, 2))
    expected = masks_from_segmentation([points.ravel().tolist()], (30, 25), NAME)
    assert 0 < expected.sum() < expected.numel()
    for other in (np.roll(points, 4, axis=0), points[::-1], np.concatenate([points, points[:1]])):
        mask = masks_from_segmentation([other.ravel().tolist()], (30, 25), NAME)
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor])
def test_arrays_are_lists(convert):
    """Data sets may have arrays instead of lists."""
    polygon = [1, 1, 3, 1, 3, 3, 1, 3]
    expected = masks_from_segmentation([polygon], (4, 5), NAME)
    assert torch.equal(masks_from_segmentation([convert(polygon)], (4, 5), NAME), expected)
    assert torch.equal(masks_from_segmentation(convert([polygon]), (4, 5), NAME), expected)
    rle = {"size": convert([2, 3]), "counts": convert([0, 2, 1, 1, 2])}
    assert torch.equal(masks_from_segmentation(rle, (2, 3), NAME), L_SHAPE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_zeros_and_ones_are_masks(dtype):
    """Masks may have any dtype."""
    assert rle_from_mask(L_SHAPE.to(dtype)) == rle_from_mask(L_SHAPE)
    assert run_lengths(L_SHAPE.to(dtype)) == run_lengths(L_SHAPE)


# Errors.

SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    ("polygons", "error", "message"),
    [
        ([], ValueError, "no polygons; expected [[x0, y0"),
        ([[]], ValueError, "polygon 0 of 0 numbers"),
        ([SQUARE, [1, 1, 2, 2]], ValueError, "polygon 1 of 4 numbers; expected x and y of"),
        ([[1, 1, 2, 2, 3, 3, 4]], ValueError, "polygon 0 of 7 numbers; expected x and y"),
        ([[*SQUARE, 1, math.nan]], ValueError, "coordinates [nan]; expected finite numbers"),
        ([[*SQUARE, -math.inf, 1]], ValueError, "coordinates [-inf]; expected finite numbers"),
        ([[*SQUARE, 1, 1e300]], ValueError, "coordinates [1e+300]; expected finite numbers"),
        ([[*SQUARE, 1, -100_006]], ValueError, "up to 100005 pixels"),
        (SQUARE, TypeError, "polygon 0 1; expected a flat list"),
        ([[[1, 1], [3, 1], [3, 3]]], TypeError, "polygon 0 [[1, 1], [3, 1], [3, 3]]; expected"),
        ([[1, 1, [3], 1, 3, 3]], TypeError, "polygon 0 [1, 1, [3], 1, 3, 3]; expected"),
        ([[1, 1, "3", 1, 3, 3]], TypeError, "polygon 0 [1, 1, '3', 1, 3, 3]; expected"),
        ([[1, 1, None, 1, 3, 3]], TypeError, "polygon 0 "),
        ([[1, 1, 10**400, 1, 3, 3]], TypeError, "polygon 0 "),
        ([[1.5, 1, 10**400, 1, 3, 3]], TypeError, "polygon 0 "),
        (["1, 1, 3, 1, 3, 3"], TypeError, "polygon 0 '1, 1, 3, 1, 3, 3'; expected"),
        (np.array(3), TypeError, "segmentation of type ndarray; expected [[x0, y0"),
        (None, TypeError, "segmentation of type NoneType; expected [[x0, y0"),
        ("61X13mNM", TypeError, "segmentation of type str; expected [[x0, y0"),
    ],
)
def test_invalid_polygons_raise(polygons, error, message):
    """The error names the object."""
    with pytest.raises(error, match=f"^{NAME} has .*{re.escape(message)}"):
        masks_from_segmentation(polygons, (4, 5), NAME)


@pytest.mark.parametrize(
    ("rle", "error", "message"),
    [
        ({"size": [2, 3]}, ValueError, "with ['size']; expected [[x0, y0"),
        ({"counts": [6]}, ValueError, "with ['counts']; expected [[x0, y0"),
        (
            {"size": [3, 2], "counts": [6]},
            ValueError,
            "size [3, 2]; expected the size of the image, [2, 3]",
        ),
        ({"size": [2, 3, 1], "counts": [6]}, ValueError, "size [2, 3, 1]; expected the size"),
        ({"size": "2x3", "counts": [6]}, TypeError, "size '2x3'; expected the size"),
        ({"size": None, "counts": [6]}, TypeError, "size None; expected the size"),
        ({"size": [2, 3], "counts": [2, 3]}, ValueError, "[2, 3] with sum 5 and minimum 0"),
        ({"size": [2, 3], "counts": []}, ValueError, "[] with sum 0"),
        ({"size": [2, 3], "counts": [2, 3, 2]}, ValueError, "the sum height * width = 6"),
        ({"size": [2, 3], "counts": [4, -1, 3]}, ValueError, "with sum 6 and minimum -1; expected"),
        ({"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62, 6]}, ValueError, "with sum 1844"),
        ({"size": [2, 3], "counts": [2**64 - 1]}, ValueError, "minimum -1; expected integers >= 0"),
        ({"size": [2, 3], "counts": [2.0, 4.0]}, TypeError, "[2.0, 4.0]; expected a flat list of"),
        ({"size": [2, 3], "counts": [True] * 6}, TypeError, "expected a flat list of integers"),
        ({"size": [2, 3], "counts": [[2, 4]]}, TypeError, "[[2, 4]]; expected a flat list of"),
        ({"size": [2, 3], "counts": [10**30]}, TypeError, "expected a flat list of integers"),
        ({"size": [2, 3], "counts": None}, TypeError, "None; expected a flat list of integers"),
        ({"size": [2, 3], "counts": 6}, TypeError, "6; expected a flat list of integers"),
        ({"size": [2, 3], "counts": ""}, ValueError, "'' with sum 0"),
        ({"size": [2, 3], "counts": "23"}, ValueError, "'23' with sum 5"),
        ({"size": [2, 3], "counts": "232"}, ValueError, "'232' with sum 7"),
        ({"size": [2, 3], "counts": "4O3"}, ValueError, "'4O3' with sum 6 and minimum -1"),
        ({"size": [2, 3], "counts": "6P"}, ValueError, "'6P' that are truncated"),
        ({"size": [2, 3], "counts": "P" * 8 + "06"}, ValueError, "more than 8 characters"),
        ({"size": [2, 3], "counts": "6 \n"}, ValueError, "characters ['\\n', ' ']; expected"),
        ({"size": [2, 3], "counts": "6é€"}, ValueError, "characters ['é', '€']; expected"),
        (
            {"size": [2, 3], "counts": b"\xff6p/"},
            ValueError,
            "characters ['/', 'p', 'ÿ']; expected",
        ),
    ],
)
def test_invalid_run_lengths_raise(rle, error, message):
    """Truncated masks and masks of another image raise."""
    with pytest.raises(error, match=f"^{NAME} has .*{re.escape(message)}"):
        masks_from_segmentation(rle, (2, 3), NAME)
