"""Segment maps: equality with recorded results of transformers and the official code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from hf_detr.image_processing.postprocess_masks import (
    encode_segments,
    merged_maps,
    segment_maps,
    semantic_maps,
)

SETTINGS = ("default", "loose", "strict", "nothing")


@pytest.fixture(scope="module")
def recorded(reference_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Recorded results of transformers for one set of predictions."""
    path = reference_dir / "ops" / "segmentation_postprocess"
    info = json.loads(path.with_suffix(".json").read_text())
    return info, load_file(path.with_suffix(".safetensors"))


def maps_of(
    recorded: tuple[dict, dict[str, Tensor]],
    settings: dict[str, float],
    fused: set[int],
    is_resized: bool,
) -> list[dict]:
    info, tensors = recorded
    scores, labels = tensors["logits"].softmax(-1).max(-1)
    best_classes = scores, labels, labels != info["num_classes"]
    sizes = info["target_sizes"] if is_resized else None
    return segment_maps(
        best_classes, tensors["pred_masks"], label_ids_to_fuse=fused, target_sizes=sizes, **settings
    )


def ids_are_consistent(segments: list[dict]) -> bool:
    """Whether ids are unique; transformers repeats ids after fused segments."""
    owners = {}
    for index, segment in enumerate(segments):
        owner = segment["label_id"] if segment["was_fused"] else -1 - index
        if owners.setdefault(segment["id"], owner) != owner:
            return False
    return True


def without_ids(segments: list[dict]) -> list[dict]:
    return [{name: s[name] for name in ("label_id", "was_fused", "score")} for s in segments]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("size", ["raw", "resized"])
@pytest.mark.parametrize("kind", ["panoptic/{}/fuse_91_249", "panoptic/{}/no_fuse", "instance/{}"])
def test_segments_equal_transformers(
    recorded: tuple[dict, dict[str, Tensor]], kind: str, settings: str, size: str
) -> None:
    """Maps and records are equal at four settings, with and without fusing and resizing."""
    info, tensors = recorded
    name = f"Detr/{kind.format(settings)}"
    entry = info[f"{name}/{size}" if "panoptic" in kind else f"{name}/map/{size}"]
    fused = set(range(91, 250)) if "/fuse" in kind else set()
    results = maps_of(recorded, entry["settings"], fused, size == "resized")
    for image, (result, segments) in enumerate(zip(results, entry["segments_info"], strict=True)):
        got = result["segments_info"]
        assert without_ids(got) == [
            {**record, "score": pytest.approx(record["score"], abs=2e-6)}
            for record in without_ids(segments)
        ]
        if ids_are_consistent(segments):
            key = f"{name}/{size}/{image}" if "panoptic" in kind else f"{name}/map/{size}/{image}"
            assert [segment["id"] for segment in got] == [segment["id"] for segment in segments]
            # Pixels with ties may be assigned to either query.
            differ = (result["segmentation"] != tensors[key]).float().mean()
            assert differ < 2e-3
        assert ids_are_consistent(got)


@pytest.mark.parametrize("size", ["raw", "resized"])
def test_semantic_maps_equal_transformers(
    recorded: tuple[dict, dict[str, Tensor]], size: str
) -> None:
    """Class maps are equal."""
    info, tensors = recorded
    probabilities = tensors["logits"].softmax(-1)[..., :-1]
    sizes = info["target_sizes"] if size == "resized" else None
    maps = semantic_maps(probabilities, tensors["pred_masks"], sizes)
    for image, got in enumerate(maps):
        assert (got != tensors[f"Detr/semantic/{size}/{image}"]).float().mean() < 2e-3


@pytest.mark.parametrize("return_scores", [False, True])
def test_semantic_scores(return_scores: bool) -> None:
    """Scores are sums over queries, as computed by hand, and the map is their argmax."""
    probabilities = torch.tensor([[[0.5, 0.25], [0.0, 0.5]]])
    masks = torch.full((1, 2, 1, 2), -100.0)
    masks[0, 0, 0, 0] = masks[0, :, 0, 1] = 100.0
    (result,) = semantic_maps(probabilities, masks, return_segmentation_scores=return_scores)
    if return_scores:
        expected = torch.tensor([[[0.5, 0.5]], [[0.25, 0.75]]])
        assert_close(result.segmentation_scores, expected, atol=1e-6, rtol=0)
        result = result.segmentation
    assert result.dtype == torch.int64 and result.tolist() == [[0, 1]]


def test_padding_is_removed() -> None:
    """In batches of different sizes, objects at the border of an image stay there."""
    masks = torch.full((1, 2, 2, 4), -20.0)
    masks[0, 0, :, 0] = masks[0, 1, :, 1] = 20.0  # left and right half; columns 2, 3 are padding
    pixel_mask = torch.zeros(1, 8, 16, dtype=torch.long)
    pixel_mask[:, :, :8] = 1
    is_object = torch.ones(1, 2, dtype=torch.bool)
    best_classes = torch.full((1, 2), 0.9), torch.tensor([[3, 4]]), is_object
    sizes, expected = [(4, 8)], [[1] * 4 + [2] * 4] * 4
    for make in (segment_maps, merged_maps):
        (result,) = make(best_classes, masks, target_sizes=sizes, pixel_mask=pixel_mask)
        assert result["segmentation"].tolist() == expected
    (got,) = semantic_maps(torch.eye(2)[None], masks, sizes, pixel_mask=pixel_mask)
    assert (got + 1).tolist() == expected
    (result,) = segment_maps(best_classes, masks, target_sizes=sizes)
    assert result["segmentation"].tolist() != expected  # squeezed, as in transformers


@pytest.mark.parametrize("threshold", ["0.85", "0.5", "0.999"])
def test_merge_equals_official(recorded: tuple[dict, dict[str, Tensor]], threshold: str) -> None:
    """All pixels, classes and areas are equal."""
    info, tensors = recorded
    scores, labels = tensors["logits"].softmax(-1).max(-1)
    best_classes = scores, labels, labels != info["num_classes"]
    for image, processed_hw in enumerate(info["processed_sizes"]):
        # One by one, because the official code doesn't remove the padding of a batch.
        one = slice(image, image + 1)
        (result,) = merged_maps(
            tuple(column[one] for column in best_classes),
            tensors["pred_masks"][one],
            float(threshold),
            set(range(91, 250)),
            target_sizes=info["target_sizes"][one],
            pixel_mask=torch.ones(1, *processed_hw),
        )
        expected = tensors[f"official/panoptic/{threshold}/{image}"]
        assert (result["segmentation"] - 1 != expected).float().mean() < 2e-3
        got = [(s["id"] - 1, s["label_id"], not s["was_fused"]) for s in result["segments_info"]]
        segments = info[f"official/panoptic/{threshold}"][image]
        assert got == [(s["id"], s["category_id"], s["isthing"]) for s in segments]
        for one_segment, other in zip(result["segments_info"], segments, strict=True):
            assert one_segment["area"] == pytest.approx(other["area"], abs=10)


def test_merge_by_hand() -> None:
    """Stuff is fused, and small segments are dropped."""
    masks = torch.zeros(1, 4, 1, 12)
    masks[0, 0, 0, :5] = masks[0, 1, 0, 5:7] = masks[0, 2, 0, 7:] = 9.0
    masks[0, 2, 0, 5:7] = 5.0  # second best where a small segment is
    masks[0, 3] = -9.0  # nowhere the best
    labels = torch.tensor([[2, 4, 2, 4]])
    arguments = (torch.full((1, 4), 0.9), labels, torch.ones(1, 4, dtype=torch.bool)), masks
    (things,) = merged_maps(*arguments)
    assert things["segmentation"].tolist() == [[1] * 5 + [2] * 7]
    record = {"id": 1, "label_id": 2, "was_fused": False, "score": 0.9, "area": 5}
    assert things["segments_info"] == [record, {**record, "id": 2, "area": 7}]
    (stuff,) = merged_maps(*arguments, label_ids_to_fuse={2})
    assert stuff["segmentation"].tolist() == [[1] * 12]
    assert stuff["segments_info"] == [{**record, "was_fused": True, "area": 12}]
    (fine,) = merged_maps(*arguments, min_area=1)
    assert fine["segmentation"].tolist() == [[1] * 5 + [2] * 2 + [3] * 5]
    (nothing,) = merged_maps(*arguments, min_area=13)
    assert nothing["segments_info"] == [] and (nothing["segmentation"] == -1).all()


def test_run_lengths_equal_transformers(recorded: tuple[dict, dict[str, Tensor]]) -> None:
    """`return_coco_annotation` returns the same run lengths."""

    def encode(segmentation: Tensor) -> list[list[int]]:
        (result,) = encode_segments([{"segmentation": segmentation, "segments_info": [{}]}])
        return result["segmentation"]

    info, tensors = recorded
    entry = info["Detr/instance/default/rle/resized"]
    for image, expected in enumerate(entry["rle"]):
        assert encode(tensors[f"Detr/instance/default/map/resized/{image}"]) == expected
    assert encode(torch.tensor([[0, 1, 1], [1, 0, 2]])) == [[1, 1, 5, 1], [2, 3], [6, 1]]


def test_segments_after_fused_ones_have_new_ids() -> None:
    """Ids aren't repeated after a fused segment."""
    masks = torch.full((1, 4, 1, 4), -20.0)
    masks[0, range(4), 0, range(4)] = 20.0  # each query owns a pixel
    labels = torch.tensor([[7, 1, 7, 2]])  # sky, cat, sky, dog
    best_classes = torch.full((1, 4), 0.9), labels, torch.ones(1, 4, dtype=torch.bool)
    (result,) = segment_maps(best_classes, masks, label_ids_to_fuse={7})
    assert result["segmentation"].tolist() == [[1, 2, 1, 3]]
    assert [segment["id"] for segment in result["segments_info"]] == [1, 2, 1, 3]


def test_no_segments() -> None:
    """Images without objects have empty results, and a wrong number of sizes raises."""
    labels, is_object = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.bool)
    best_classes, masks = (torch.ones(1, 3), labels, is_object), torch.zeros(1, 3, 2, 2)
    for make in (segment_maps, merged_maps):
        (result,) = make(best_classes, masks, target_sizes=[(4, 5)])
        assert result["segments_info"] == [] and (result["segmentation"] == -torch.ones(4, 5)).all()
    for make in (
        lambda sizes: segment_maps(best_classes, masks, target_sizes=sizes),
        lambda sizes: merged_maps(best_classes, masks, target_sizes=sizes),
        lambda sizes: semantic_maps(torch.zeros(1, 3, 2), masks, sizes),
    ):
        with pytest.raises(ValueError, match="2 entries for 1 images"):
            make([(4, 5), (4, 5)])


# --- outputs that aren't finite, wrong arguments --------------------------------------------------


def random_predictions() -> tuple[Tensor, Tensor]:
    """Class probabilities (1, 4, 3) of certain queries, and their masks (1, 4, 6, 5)."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.tensor([[[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.9], [0, 0.7, 0]]])
    return probabilities, 4 * torch.randn(1, 4, 6, 5, generator=generator)


@pytest.mark.parametrize("where", ["class", "mask"])
@pytest.mark.parametrize("function", [semantic_maps, segment_maps, merged_maps])
def test_queries_with_nan_are_left_out(function: Any, where: str) -> None:
    """A query with NaN takes no pixels from others, and doesn't vanish silently."""
    probabilities, masks = random_predictions()
    others = [0, 2, 3]

    def result(probabilities: Tensor, masks: Tensor) -> Any:
        if function is semantic_maps:
            return function(probabilities, masks, [(7, 9)])
        scores, labels = probabilities.max(-1)
        best_classes = scores, labels, torch.ones_like(labels, dtype=torch.bool)
        return function(best_classes, masks, 0.5, target_sizes=[(7, 9)])

    expected = result(probabilities[:, others], masks[:, others])
    if where == "class":
        probabilities[0, 1] = torch.nan
    else:
        masks[0, 1, 2, 3] = torch.nan
    with pytest.warns(UserWarning, match="NaN or infinite values; queries with such values"):
        assert_close(result(probabilities, masks), expected, rtol=0, atol=0)


@pytest.mark.parametrize("value", [50, torch.nan, None])
@pytest.mark.parametrize(
    "name", ["threshold", "mask_threshold", "overlap_mask_area_threshold", "merge"]
)
def test_thresholds_that_are_no_probabilities_raise(name: str, value: object) -> None:
    """A percentage or NaN doesn't drop all segments silently."""
    probabilities, masks = random_predictions()
    scores, labels = probabilities.max(-1)
    best_classes = scores, labels, labels >= 0
    function, name = (merged_maps, "threshold") if name == "merge" else (segment_maps, name)
    with pytest.raises(ValueError, match=f"^{name} is {value}; expected a number from 0 to 1"):
        function(best_classes, masks, **{name: value})


@pytest.mark.parametrize("wrong", [(30,), (30, 40, 3), (0, 4), (-3, 4), (torch.nan, 4), (3.5, 4)])
def test_target_sizes_that_are_no_sizes_raise(wrong: tuple) -> None:
    """The error names the image, and sizes aren't truncated."""
    with pytest.raises(ValueError, match=r"target_sizes\[0\] is .*; expected"):
        semantic_maps(*random_predictions(), [wrong])
