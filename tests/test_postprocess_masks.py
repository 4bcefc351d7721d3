"""Protects segment maps: those that transformers recorded, by hand, and ids that stay apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from hf_detr.postprocess_masks import encode_segments, segment_maps, semantic_maps

SETTINGS = ("default", "loose", "strict", "nothing")


@pytest.fixture(scope="module")
def recorded(reference_dir: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What transformers made of one set of predictions."""
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
    options = dict(settings)
    threshold = options.pop("threshold", 0.5)
    scores, labels = tensors["logits"].softmax(-1).max(-1)
    keep = (labels != info["num_classes"]) & (scores > threshold)
    sizes = info["target_sizes"] if is_resized else None
    return segment_maps(
        scores, labels, keep, tensors["pred_masks"], label_ids_to_fuse=fused, target_sizes=sizes,
        **options,
    )  # fmt: skip


def ids_are_consistent(segments: list[dict]) -> bool:
    """Whether an id stands for one segment; transformers counts on from where it fused."""
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
    """Protects maps, records and their order, at four settings, fused or not, resized or not."""
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
            # Pixels where two queries tie may fall to either.
            differ = (result["segmentation"] != tensors[key]).float().mean()
            assert differ < 2e-3
        assert ids_are_consistent(got)


@pytest.mark.parametrize("size", ["raw", "resized"])
def test_semantic_maps_equal_transformers(
    recorded: tuple[dict, dict[str, Tensor]], size: str
) -> None:
    """Protects class maps."""
    info, tensors = recorded
    probabilities = tensors["logits"].softmax(-1)[..., :-1]
    sizes = info["target_sizes"] if size == "resized" else None
    maps = semantic_maps(probabilities, tensors["pred_masks"], sizes)
    for image, got in enumerate(maps):
        assert (got != tensors[f"Detr/semantic/{size}/{image}"]).float().mean() < 2e-3


def test_run_lengths_equal_transformers(recorded: tuple[dict, dict[str, Tensor]]) -> None:
    """Protects the run-length encoding that `return_coco_annotation` asks for."""
    info, tensors = recorded
    entry = info["Detr/instance/default/rle/resized"]
    for image, expected in enumerate(entry["rle"]):
        assert encode_segments(tensors[f"Detr/instance/default/map/resized/{image}"]) == expected
    assert encode_segments(torch.tensor([[0, 1, 1], [1, 0, 2]])) == [[1, 1, 5, 1], [2, 3], [6, 1]]


def test_fused_segments_leave_other_ids_alone() -> None:
    """Protects a new segment after a fused one from taking another's id."""
    masks = torch.full((1, 4, 1, 4), -20.0)
    masks[0, range(4), 0, range(4)] = 20.0  # each query owns a pixel
    labels = torch.tensor([[7, 1, 7, 2]])  # sky, cat, sky, dog
    scores, keep = torch.full((1, 4), 0.9), torch.ones(1, 4, dtype=torch.bool)
    (result,) = segment_maps(scores, labels, keep, masks, label_ids_to_fuse={7})
    assert result["segmentation"].tolist() == [[1, 2, 1, 3]]
    assert [segment["id"] for segment in result["segments_info"]] == [1, 2, 1, 3]


def test_nothing_found() -> None:
    """Protects images without objects, and a number of sizes that isn't that of the images."""
    scores, labels = torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.long)
    keep, masks = torch.zeros(1, 3, dtype=torch.bool), torch.zeros(1, 3, 2, 2)
    (result,) = segment_maps(scores, labels, keep, masks, target_sizes=[(4, 5)])
    assert result["segments_info"] == [] and (result["segmentation"] == -torch.ones(4, 5)).all()
    for make in (
        lambda sizes: segment_maps(scores, labels, keep, masks, target_sizes=sizes),
        lambda sizes: semantic_maps(torch.zeros(1, 3, 2), masks, sizes),
    ):
        with pytest.raises(ValueError, match="2 entries for 1 images"):
            make([(4, 5), (4, 5)])
