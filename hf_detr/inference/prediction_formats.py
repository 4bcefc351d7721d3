"""Files of predictions: JSON, Parquet, and data sets as COCO, YOLO and Pascal VOC.

All are written from the records of `prediction_lines`, one after the other. A data set has the
images that didn't fail, in the folder `IMAGE_FOLDERS`, and can be read with `hf_detr.data`. Nothing
here needs torch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TextIO
from xml.etree import ElementTree

import yaml

from ..atomic_saving import atomic_file

Records = Callable[[], Iterator[dict[str, Any]]]
# Formats of data sets, and the folder of their images
IMAGE_FOLDERS = {"coco": "images", "yolo": "images", "voc": "JPEGImages"}
FORMATS = ("json", "jsonl", "parquet", *IMAGE_FOLDERS)
# What is written last or names all images, in each format other than jsonl
MAIN_FILES = (
    *("predictions.json", "predictions.parquet", "annotations/instances_train.json"),
    *("data.yaml", "ImageSets/Main/train.txt"),
)
ROW_GROUP = 1000  # images


def write_format(
    name: str,
    folder: Path,
    records: Records,
    names: Mapping[int, str],
    header: Mapping[str, Any],
    skipped: Iterable[Path] | None = None,
) -> tuple[Path, int]:
    """Write one of `FORMATS` other than jsonl.

    Args:
        name: the format.
        folder: where it is written.
        records, names: see `write_coco`.
        header, skipped: see `write_report`.

    Returns:
        The file or folder, and the number of objects without area, which are left out of data sets.
    """
    file = folder / f"predictions.{name}"
    match name:
        case "json":
            with atomic_file(file) as unfinished, unfinished.open("w", encoding="utf-8") as opened:
                write_report(opened, header, records, skipped)
        case "parquet":
            write_parquet(file, records)
        case _:
            write = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}[name]
            return folder, write(folder, records, names)
    return file, 0


def write_report(
    file: TextIO, header: Mapping[str, Any], records: Records, skipped: Iterable[Path] | None = ()
) -> None:
    """Write one JSON object: the header, `images`, `failed`, and `skipped` files if not None."""
    lists = {
        "images": (record for record in records() if "error" not in record),
        "failed": (record for record in records() if "error" in record),
    }
    if skipped is not None:
        lists["skipped"] = map(str, skipped)
    _write_object(file, header, lists)


def write_parquet(target: Path, records: Records) -> None:
    """Write a row per image, failed ones too, in row groups of 1,000."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    real, text = pyarrow.float64(), pyarrow.string()
    found = {"label": text, "label_id": pyarrow.int64(), "score": real}
    objects = pyarrow.struct({**found, "box": pyarrow.list_(real, 4)})
    segment = {"id": pyarrow.int64(), "was_fused": pyarrow.bool_(), **found}
    segments = pyarrow.struct({**segment, "area": pyarrow.int64()})
    sizes = {name: pyarrow.int64() for name in ("index", "width", "height")}
    files = dict.fromkeys(("file", "picture", "segment_map", "error"), text)
    lists = {"objects": pyarrow.list_(objects), "segments": pyarrow.list_(segments)}
    schema = pyarrow.schema({**sizes, **files, **lists, "uncertainty": real})
    waiting = records()
    with atomic_file(target) as unfinished, ParquetWriter(unfinished, schema) as writer:
        while rows := list(islice(waiting, ROW_GROUP)):
            rows = [{key: _valid(value) for key, value in row.items()} for row in rows]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def write_coco(folder: Path, records: Records, names: Mapping[int, str]) -> int:
    """Write `annotations/instances_train.json`, for `read_coco(folder)`.

    The annotations also have a `score`.

    Args:
        folder: folder of the data set.
        records: gives the records, whose `image` is the image's path in its folder.
        names: names of all label ids.

    Returns:
        The number of objects without area within their image, which are left out.
    """
    counts = [0, 0]  # of objects with and without area

    def annotations() -> Iterator[dict[str, Any]]:
        for record in _successful(records):
            for found, (x0, y0, x1, y1) in _inside(record, counts):
                yield {
                    "id": counts[0],
                    "image_id": record["index"] + 1,
                    "category_id": found["label_id"],
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": round((x1 - x0) * (y1 - y0), 2),
                    "iscrowd": 0,
                    "score": found["score"],
                }

    images = (
        {"id": record["index"] + 1, "file_name": record["image"], **_size(record)}
        for record in _successful(records)
    )
    categories = ({"id": label, "name": name} for label, name in names.items())
    lists = {"images": images, "annotations": annotations(), "categories": categories}
    with (
        atomic_file(folder / "annotations" / "instances_train.json") as unfinished,
        unfinished.open("w", encoding="utf-8") as file,
    ):
        _write_object(file, {}, lists)
    return counts[1]


def write_yolo(folder: Path, records: Records, names: Mapping[int, str]) -> int:
    """Write `data.yaml` and a text file per image, for `read_yolo(folder)`; see `write_coco`."""
    counts = [0, 0]
    for record in _successful(records):
        width, height = record["width"], record["height"]
        lines = [
            f"{found['label_id']} {(x0 + x1) / 2 / width:.6f} {(y0 + y1) / 2 / height:.6f} "
            f"{(x1 - x0) / width:.6f} {(y1 - y0) / height:.6f}\n"
            for found, (x0, y0, x1, y1) in _inside(record, counts)
        ]
        file = folder / _label_file(record["image"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")
    content = {"train": "images", "val": "images", "names": dict(names)}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return counts[1]


def write_voc(folder: Path, records: Records, names: Mapping[int, str]) -> int:
    """Write an XML file per image and the list of all, for `read_voc(folder)`; see `write_coco`."""
    counts = [0, 0]
    listed = folder / "ImageSets" / "Main" / "train.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    with listed.open("w", encoding="utf-8") as stems:
        for record in _successful(records):
            stem = PurePosixPath(record["image"]).with_suffix("")
            root = ElementTree.Element("annotation")
            _add(root, {"filename": PurePosixPath(record["image"]).name})
            _add(ElementTree.SubElement(root, "size"), {**_size(record), "depth": 3})
            for found, (x0, y0, x1, y1) in _inside(record, counts):
                element = ElementTree.SubElement(root, "object")
                _add(element, {"name": found["label"], "difficult": 0})
                _add(element, {"score": found["score"]})
                # Pixels are counted from 1, and the last one belongs to the box.
                corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}
                corners = {name: round(value, 2) for name, value in corners.items()}
                _add(ElementTree.SubElement(element, "bndbox"), corners)
            file = folder / "Annotations" / f"{stem}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            ElementTree.indent(root)
            ElementTree.ElementTree(root).write(file, encoding="utf-8")
            stems.write(f"{stem}\n")
    return counts[1]


def _write_object(
    file: TextIO, header: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]
) -> None:
    """Write a JSON object that ends with lists, whose items are never in memory together."""
    file.write("{\n" + "".join(f'"{k}": {json.dumps(value)},\n' for k, value in header.items()))
    for number, (key, items) in enumerate(lists.items()):
        file.write(",\n" * bool(number) + f'"{key}": [')
        for index, item in enumerate(items):
            file.write(",\n" * bool(index) + json.dumps(item))
        file.write("]")
    file.write("\n}\n")


def _successful(records: Records) -> Iterator[dict[str, Any]]:
    return (record for record in records() if "error" not in record)


def _size(record: Mapping[str, Any]) -> dict[str, int]:
    return {"width": record["width"], "height": record["height"]}


def _inside(
    record: Mapping[str, Any], counts: list[int]
) -> Iterator[tuple[dict[str, Any], list[float]]]:
    """Yield objects and their boxes (x0, y0, x1, y1) cut at the image's border.

    `counts` are increased by the objects with and without area.
    """
    limits = (record["width"], record["height"]) * 2
    for found in record["objects"]:
        edges = zip(found["box"], limits, strict=True)
        box = [min(max(edge, 0), limit) for edge, limit in edges]
        has_area = box[0] < box[2] and box[1] < box[3]
        counts[not has_area] += 1
        if has_area:
            yield found, box


def _label_file(image: str) -> PurePosixPath:
    """Return a YOLO label file: the last folder `images` of the path becomes `labels`."""
    folders = list(PurePosixPath("images", image).parts[:-1])
    folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return PurePosixPath(*folders, f"{PurePosixPath(image).stem}.txt")


def _add(element: ElementTree.Element, texts: Mapping[str, Any]) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(element, name).text = str(text)


def _valid(value: Any) -> Any:
    """Replace what Parquet's texts can't have: names of files can be any bytes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
