"""Predictions in other formats: what our own readers and pyarrow read is what was found."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_detr.data.coco import read_coco
from hf_detr.data.dataset import DetectionDataset
from hf_detr.data.voc import read_voc
from hf_detr.data.yolo import read_yolo
from hf_detr.inference.prediction_formats import (
    IMAGE_FOLDERS,
    write_coco,
    write_parquet,
    write_report,
    write_voc,
    write_yolo,
)

from ..some_data import write_image

NAMES = {0: "a cat", 1: "Straße: „é“", 2: "no"}  # YAML reads "no" as False
# The last is a name of a folder that YOLO gives a meaning.
IMAGES = ("my cat.png", "a/1.png", "b/1.png", "ü # %20.png", "x.y.png", "1 1.png", "images/1.png")
DATA_SETS = {
    "coco": (write_coco, read_coco),
    "yolo": (write_yolo, read_yolo),
    "voc": (write_voc, read_voc),
}


def found(label: int, *box: float) -> dict[str, Any]:
    return {"label": NAMES[label], "label_id": label, "score": 0.75, "box": list(box)}


def records() -> Iterator[dict[str, Any]]:
    """A failure, an image without objects, one with a box beyond its border, and others."""
    yield {"index": 0, "file": "torn.jpg", "error": "torn"}
    for number, image in enumerate(IMAGES):
        objects = [found(2, 10, 5, 30.5, 13.25), found(1, -3, 7.5, 60, 8.5), found(0, 1, 2, 3, 4)]
        objects = [] if number == 2 else objects[: number + 1]
        size = {"width": 50, "height": 40}
        yield {"index": number + 1, "file": image, **size, "objects": objects, "image": image}


def read_back(dataset: DetectionDataset, index: int) -> list[tuple[str, list[float]]]:
    table = dataset.table
    rows = table.rows(index)
    names = [table.id2label[int(table.class_labels[row])] for row in rows]
    return list(zip(names, table.boxes_xywh[rows.start : rows.stop].tolist(), strict=True))


@pytest.mark.parametrize("name", DATA_SETS)
def test_readers_read_what_was_found(tmp_path: Path, name: str) -> None:
    """Images with odd and equal names, names of classes, and boxes cut at the border (0.01)."""
    write, read = DATA_SETS[name]
    for number, image in enumerate(IMAGES):
        write_image(tmp_path / IMAGE_FOLDERS[name] / image, seed=number)
    assert write(tmp_path, records, NAMES) == 0
    dataset = read(tmp_path)
    assert not dataset.table.problems
    files = [dataset.images.name(index) for index in range(len(dataset))]
    expected = {record["image"]: record for record in records() if "error" not in record}
    start = f"{tmp_path / IMAGE_FOLDERS[name]}/"
    assert sorted(files) == sorted(start + image for image in IMAGES)
    for index, file in enumerate(files):
        record = expected[file.removeprefix(start)]
        got = read_back(dataset, index)
        assert [label for label, _ in got] == [one["label"] for one in record["objects"]]
        for (_, (x, y, w, h)), one in zip(got, record["objects"], strict=True):
            box = np.clip(one["box"], 0, [50, 40, 50, 40])
            assert [x, y, x + w, y + h] == pytest.approx(box, abs=0.01)
        assert dataset[index][0].shape[-2:] == (40, 50)


@pytest.mark.parametrize("name", DATA_SETS)
def test_boxes_without_area_are_counted(tmp_path: Path, name: str) -> None:
    """A box beside its image, or rounded to nothing, isn't written, and its number is returned."""
    write, read = DATA_SETS[name]
    write_image(tmp_path / IMAGE_FOLDERS[name] / "1.png")
    objects = [found(0, 60, 0, 70, 9), found(0, 5, 5, 5, 9), found(0, 5, 5, 8, 9)]
    size = {"width": 50, "height": 40}
    record = {"index": 0, "file": "1.png", **size, "objects": objects, "image": "1.png"}
    assert write(tmp_path, lambda: iter([record]), NAMES) == 2
    [(_, box)] = read_back(read(tmp_path), 0)
    assert box == pytest.approx([5, 5, 3, 4], abs=0.01)


def test_coco_keeps_scores(tmp_path: Path) -> None:
    """Annotations have the score, which tools for correcting predictions show."""
    write_coco(tmp_path, records, NAMES)
    content = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    assert {one["score"] for one in content["annotations"]} == {0.75}
    assert content["categories"][1] == {"id": 1, "name": NAMES[1]}
    ids = [one["id"] for one in content["annotations"]]
    assert len(set(ids)) == len(ids)


def test_parquet_has_all_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row per image in several row groups; names of files can be any bytes."""
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("hf_detr.inference.prediction_formats.ROW_GROUP", 3)
    odd = {"index": 8, "file": "caf\udce9.jpg", "error": "torn"}
    segment = {"id": 1, "label_id": 0, "was_fused": False, "score": 0.5, "label": "a cat"}
    masks = {"index": 9, "file": "m.png", "width": 1, "height": 1, "objects": []}
    masks |= {"segment_map": "m.segments.png", "uncertainty": 0.5}
    more = [odd, {**masks, "segments": [{**segment, "area": 7}]}]
    write_parquet(tmp_path / "p.parquet", lambda: iter([*records(), *more]))
    table = parquet.ParquetFile(tmp_path / "p.parquet")
    assert table.num_row_groups == 4
    rows = table.read().to_pylist()
    expected = [*records(), *more]
    assert [row["index"] for row in rows] == list(range(10))
    assert rows[1]["objects"] == expected[1]["objects"] and rows[1]["file"] == IMAGES[0]
    assert rows[0]["objects"] is None and rows[0]["error"] == "torn"
    assert rows[8]["file"] == "caf\\udce9.jpg"
    assert rows[9]["segments"] == [{**segment, "area": 7}]
    assert [rows[index]["uncertainty"] for index in (8, 9)] == [None, 0.5]


def test_reports_are_one_object() -> None:
    """The header comes first; failures are a list of their own."""
    file = io.StringIO()
    write_report(file, {"model": 'a "b"'}, records, [Path("notes.txt")])
    content = json.loads(file.getvalue())
    assert list(content) == ["model", "images", "failed", "skipped"]
    assert content["images"] == list(records())[1:] and content["failed"] == list(records())[:1]
    assert content["model"] == 'a "b"' and content["skipped"] == ["notes.txt"]
    file = io.StringIO()
    write_report(file, {}, lambda: iter(()))
    assert json.loads(file.getvalue()) == {"images": [], "failed": [], "skipped": []}
