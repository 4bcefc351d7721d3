"""COCO segmentations: the very pixels of pycocotools, nothing lost in packing, mistakes named."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.detr.image_processing_detr import binary_mask_to_rle

from hf_detr.coco_masks import (
    compressed_counts,
    masks_from_segmentation,
    rle_from_mask,
    run_lengths,
)

# Made with pycocotools 2.0.11, numpy 2.4.6 (x86-64) from random polygons and masks (seed 0):
#   polygons: rle = merge(frPyObjects(polygons, h, w)); counts = encode(decode(rle))["counts"]
#   masks: bits = packbits(mask).tobytes().hex(), row-major; counts = encode(mask)["counts"]
FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "coco_masks.json").read_text())
KINDS = sorted({case["kind"] for case in FIXTURE["polygons"]})
NAME = "image_id 7, annotation 3"


def mask_of(*rows: str) -> torch.Tensor:
    """A mask (H, W) drawn with '#' inside and '.' outside."""
    return torch.tensor([[pixel == "#" for pixel in row] for row in rows])


def random_masks() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1), (1, 9), (9, 1), (5, 7), (7, 5), (33, 20), (130, 90)]
    return [
        torch.rand(shape, generator=generator) < inside
        for shape in shapes
        for inside in (0.0, 0.1, 0.5, 0.9, 1.1)
    ]


# Hand-checkable.

L_SHAPE = mask_of("#..", "##.")


def test_uncompressed_run_lengths_follow_the_columns():
    """Protects COCO's order: down the columns, the first run outside."""
    rle = {"size": [2, 3], "counts": [0, 2, 1, 1, 2]}
    mask = masks_from_segmentation(rle, (2, 3), NAME)
    assert mask.dtype == torch.bool and mask.is_contiguous()
    assert torch.equal(mask, L_SHAPE)
    assert rle_from_mask(L_SHAPE) == rle


def test_runs_of_no_pixels_are_allowed():
    """Protects files whose writers split runs: an empty run still changes sides."""
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
    """Protects COCO's code: digits of 5 bits, differences to two before, from the fourth on."""
    assert compressed_counts(counts) == packed


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
        # Middles on the boundary: pycocotools' own, uneven answer.
        ([[0, 0, 4, 0, 0, 4, 4, 4]], (".##..", ".....", ".##..", "####.")),
    ],
    ids=["square", "whole image", "corner", "no area", "two parts", "overlap", "hourglass"],
)
def test_polygons_by_hand(polygons, rows):
    """Protects what a polygon covers: the pixels inside its corners, and the union of its parts."""
    mask = masks_from_segmentation(polygons, (4, 5), NAME)
    assert mask.dtype == torch.bool and mask.is_contiguous()
    assert torch.equal(mask, mask_of(*rows))


def test_run_lengths_by_hand():
    """Protects the order of what post-processing returns: along the rows, starts count from 1."""
    assert run_lengths(L_SHAPE) == [1, 1, 4, 2]
    assert run_lengths(torch.zeros(2, 3, dtype=torch.bool)) == []


# Against pycocotools and transformers.


@pytest.mark.parametrize("kind", KINDS)
def test_polygons_equal_pycocotools(kind):
    """Protects equality with pycocotools pixel for pixel, on which published masks and AP rest."""
    cases = [case for case in FIXTURE["polygons"] if case["kind"] == kind]
    assert len(cases) >= 10
    for case in cases:
        mask = masks_from_segmentation(case["polygons"], tuple(case["size"]), NAME)
        assert compressed_counts(rle_from_mask(mask)["counts"]) == case["counts"], case


def test_packed_masks_equal_pycocotools():
    """Protects reading and writing of COCO's strings, as str and as bytes."""
    for case in FIXTURE["masks"]:
        height, width = case["size"]
        packed_bits = np.frombuffer(bytes.fromhex(case["bits"]), dtype=np.uint8)
        bits = np.unpackbits(packed_bits, count=height * width)
        expected = torch.from_numpy(bits).reshape(height, width).bool()
        for counts in (case["counts"], case["counts"].encode()):
            rle = {"size": case["size"], "counts": counts}
            assert torch.equal(masks_from_segmentation(rle, (height, width), NAME), expected)
        assert compressed_counts(rle_from_mask(expected)["counts"]) == case["counts"]


def test_run_lengths_equal_transformers():
    """Protects what readers of transformers' segmentation results expect."""
    for mask in random_masks():
        assert run_lengths(mask) == binary_mask_to_rle(mask.int())


# Round trips and what may come in.


def test_masks_survive_run_lengths():
    """Protects every pixel on the way to a file and back, for all three ways to write counts."""
    for mask in random_masks():
        rle = rle_from_mask(mask)
        packed = compressed_counts(rle["counts"])
        assert json.loads(json.dumps(rle)) == rle
        for counts in (rle["counts"], packed, packed.encode(), np.array(rle["counts"])):
            back = masks_from_segmentation({**rle, "counts": counts}, tuple(mask.shape), NAME)
            assert torch.equal(back, mask)


def test_long_runs_survive_packing():
    """Protects large images: counts of several digits, growing and shrinking."""
    counts = [10**6, 1, 3, 10**6, 31, 32, 10**6, 5]
    size = [sum(counts), 1]
    mask = masks_from_segmentation({"size": size, "counts": counts}, tuple(size), NAME)
    packed = {"size": size, "counts": compressed_counts(counts)}
    assert torch.equal(masks_from_segmentation(packed, tuple(size), NAME), mask)
    assert rle_from_mask(mask)["counts"] == counts


def test_starting_point_and_direction_do_not_matter():
    """Protects masks from how their annotator went round."""
    points = np.random.default_rng(1).uniform(-5, 35, (9, 2))
    expected = masks_from_segmentation([points.ravel().tolist()], (30, 25), NAME)
    assert 0 < expected.sum() < expected.numel()
    for other in (np.roll(points, 4, axis=0), points[::-1], np.concatenate([points, points[:1]])):
        mask = masks_from_segmentation([other.ravel().tolist()], (30, 25), NAME)
        assert torch.equal(mask, expected)


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor])
def test_arrays_are_lists(convert):
    """Protects data sets that hand out arrays instead of JSON."""
    polygon = [1, 1, 3, 1, 3, 3, 1, 3]
    expected = masks_from_segmentation([polygon], (4, 5), NAME)
    assert torch.equal(masks_from_segmentation([convert(polygon)], (4, 5), NAME), expected)
    assert torch.equal(masks_from_segmentation(convert([polygon]), (4, 5), NAME), expected)
    rle = {"size": convert([2, 3]), "counts": convert([0, 2, 1, 1, 2])}
    assert torch.equal(masks_from_segmentation(rle, (2, 3), NAME), L_SHAPE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_zeros_and_ones_are_masks(dtype):
    """Protects label maps compared and cast before writing."""
    assert rle_from_mask(L_SHAPE.to(dtype)) == rle_from_mask(L_SHAPE)
    assert run_lengths(L_SHAPE.to(dtype)) == run_lengths(L_SHAPE)


# Mistakes.

SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


@pytest.mark.parametrize(
    ("polygons", "error", "message"),
    [
        ([], ValueError, "no polygons; give [[x0, y0"),
        ([[]], ValueError, "polygon 0 of 0 numbers"),
        ([SQUARE, [1, 1, 2, 2]], ValueError, "polygon 1 of 4 numbers; give x and y for 3 points"),
        ([[1, 1, 2, 2, 3, 3, 4]], ValueError, "polygon 0 of 7 numbers; give x and y"),
        ([[*SQUARE, 1, math.nan]], ValueError, "coordinates [nan]; they must be finite"),
        ([[*SQUARE, -math.inf, 1]], ValueError, "coordinates [-inf]; they must be finite"),
        ([[*SQUARE, 1, 1e300]], ValueError, "coordinates [1e+300]; they must be finite and not"),
        ([[*SQUARE, 1, -100_006]], ValueError, "not beyond 100005 pixels"),
        (SQUARE, TypeError, "polygon 0 that is 1; give a list of lists"),
        ([[[1, 1], [3, 1], [3, 3]]], TypeError, "polygon 0 that is [[1, 1], [3, 1], [3, 3]]; give"),
        ([[1, 1, [3], 1, 3, 3]], TypeError, "polygon 0 that is [1, 1, [3], 1, 3, 3]; give"),
        ([[1, 1, "3", 1, 3, 3]], TypeError, "polygon 0 that is [1, 1, '3', 1, 3, 3]; give"),
        ([[1, 1, None, 1, 3, 3]], TypeError, "polygon 0 that is"),
        ([[1, 1, 10**400, 1, 3, 3]], TypeError, "polygon 0 that is"),
        ([[1.5, 1, 10**400, 1, 3, 3]], TypeError, "polygon 0 that is"),
        (["1, 1, 3, 1, 3, 3"], TypeError, "polygon 0 that is '1, 1, 3, 1, 3, 3'; give"),
        (np.array(3), TypeError, "segmentation of type ndarray; give [[x0, y0"),
        (None, TypeError, "segmentation of type NoneType; give [[x0, y0"),
        ("61X13mNM", TypeError, "segmentation of type str; give [[x0, y0"),
    ],
)
def test_bad_polygons_are_refused_by_name(polygons, error, message):
    """Protects training from masks that aren't there, and people from searching for them."""
    with pytest.raises(error, match=f"^{NAME} has .*{re.escape(message)}"):
        masks_from_segmentation(polygons, (4, 5), NAME)


@pytest.mark.parametrize(
    ("rle", "error", "message"),
    [
        ({"size": [2, 3]}, ValueError, "with ['size'] only; give [[x0, y0"),
        ({"counts": [6]}, ValueError, "with ['counts'] only; give [[x0, y0"),
        ({"size": [3, 2], "counts": [6]}, ValueError, "size [3, 2], but the image's is [2, 3]"),
        ({"size": [2, 3, 1], "counts": [6]}, ValueError, "size [2, 3, 1], but the image's is"),
        ({"size": "2x3", "counts": [6]}, TypeError, "size '2x3', but the image's is"),
        ({"size": None, "counts": [6]}, TypeError, "size None, but the image's is"),
        ({"size": [2, 3], "counts": [2, 3]}, ValueError, "[2, 3] with sum 5 and least 0"),
        ({"size": [2, 3], "counts": []}, ValueError, "[] with sum 0"),
        ({"size": [2, 3], "counts": [2, 3, 2]}, ValueError, "sum must be height * width = 6"),
        ({"size": [2, 3], "counts": [4, -1, 3]}, ValueError, "with sum 6 and least -1; give none"),
        ({"size": [2, 3], "counts": [2**62, 2**62, 2**62, 2**62, 6]}, ValueError, "with sum 1844"),
        ({"size": [2, 3], "counts": [2**64 - 1]}, ValueError, "least -1; give none below 0"),
        (
            {"size": [2, 3], "counts": [2.0, 4.0]},
            TypeError,
            "[2.0, 4.0]; give a flat list of whole",
        ),
        ({"size": [2, 3], "counts": [True] * 6}, TypeError, "give a flat list of whole numbers"),
        ({"size": [2, 3], "counts": [[2, 4]]}, TypeError, "[[2, 4]]; give a flat list of whole"),
        ({"size": [2, 3], "counts": [10**30]}, TypeError, "give a flat list of whole numbers"),
        ({"size": [2, 3], "counts": None}, TypeError, "None; give a flat list of whole numbers"),
        ({"size": [2, 3], "counts": 6}, TypeError, "6; give a flat list of whole numbers"),
        ({"size": [2, 3], "counts": ""}, ValueError, "'' with sum 0"),
        ({"size": [2, 3], "counts": "23"}, ValueError, "'23' with sum 5"),
        ({"size": [2, 3], "counts": "232"}, ValueError, "'232' with sum 7"),
        ({"size": [2, 3], "counts": "4O3"}, ValueError, "'4O3' with sum 6 and least -1"),
        ({"size": [2, 3], "counts": "6P"}, ValueError, "'6P' that break off within a number"),
        ({"size": [2, 3], "counts": "P" * 8 + "06"}, ValueError, "more than 8 characters"),
        ({"size": [2, 3], "counts": "6 \n"}, ValueError, "characters ['\\n', ' ']; COCO's code"),
        ({"size": [2, 3], "counts": "6é€"}, ValueError, "characters ['é', '€']; COCO's code"),
        ({"size": [2, 3], "counts": b"\xff6p/"}, ValueError, "characters ['/', 'p', 'ÿ']; COCO's"),
    ],
)
def test_bad_run_lengths_are_refused_by_name(rle, error, message):
    """Protects from masks that are cut off, shifted or of another image."""
    with pytest.raises(error, match=f"^{NAME} has .*{re.escape(message)}"):
        masks_from_segmentation(rle, (2, 3), NAME)


@pytest.mark.parametrize("write", [rle_from_mask, run_lengths])
@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.zeros(1, 2, 3), ValueError, r"shape \(1, 2, 3\) .* give one mask \(H, W\)"),
        (torch.tensor([[0.3, 1.0]]), ValueError, "torch.float32; .* `probabilities > 0.5`"),
        (torch.tensor([[0, 255]]), ValueError, "torch.int64; .* of 0 and 1"),
        (np.zeros((2, 3), dtype=bool), TypeError, r"ndarray; give a tensor \(H, W\)"),
    ],
)
def test_only_masks_are_written(write, mask, error, message):
    """Protects files from scores and label maps that were taken for masks."""
    with pytest.raises(error, match=f"^the mask .*{message}"):
        write(mask)


@pytest.mark.parametrize(
    ("counts", "error"),
    [([3, -1], ValueError), ([2**39], ValueError), ([1.5], TypeError), ("12", TypeError)],
)
def test_only_run_lengths_are_packed(counts, error):
    """Protects files from strings that no reader can undo."""
    with pytest.raises(error, match=r"^counts are .*; give .*numbers"):
        compressed_counts(counts)
