"""Checks of data sets: problems are found and graded, valid data have none."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from hf_detr.data.annotation_table import AnnotationTable, Problem, make_table
from hf_detr.data.coco import read_coco, read_coco_panoptic
from hf_detr.data.problems import (
    box_problems,
    class_problems,
    count_problems,
    duplicate_problems,
    image_problems,
    repeated_image_problems,
)

from ..some_data import entry, write_coco, write_image
from .test_coco import SEGMENTS, write_panoptic

NAMES = {0: "cat", 1: "dog"}


def table(*boxes: list[float], images: int = 1, names: dict[int, str] = NAMES) -> AnnotationTable:
    """Make a table of objects of class 0, 1, 0, 1, ..., all in image 0 of 40 x 50 pixels."""
    entries = [
        {"id": 10 + number, "category_id": sorted(names)[number % len(names)], "bbox": box}
        for number, box in enumerate(boxes)
    ]
    sizes, owners = [(40, 50)] * images, [0] * len(boxes)
    return make_table(names, range(images), sizes, entries, owners, "coco_xywh")


def found(problems: object) -> list[tuple[str, int | None, bool]]:
    return [(problem.kind, problem.image, problem.is_fatal) for problem in problems]


VALID = table([0, 0, 50, 40], [10, 5, 20, 8])


def test_valid_annotations_have_no_problems():
    """The checks have no false positives."""
    for problems in (
        class_problems(VALID),
        box_problems(VALID),
        duplicate_problems(VALID),
        count_problems(VALID, num_queries=2),
    ):
        assert found(problems) == []


@pytest.mark.parametrize(
    ("box", "kind", "is_fatal"),
    [
        ([0, 0, 1e300, 5], "non-finite box", True),
        ([5, 5, -2, 5], "box with negative size", True),
        ([5, 5, 0, 5], "box without area (dropped)", False),
        ([5, 5, 1e-5, 5], "box without area (dropped)", False),
        ([0, 5, 5, 0.009], "box without area (dropped)", False),
        ([50, 5, 9, 5], "box outside its image (dropped)", False),
        ([5, -9, 9, 9], "box outside its image (dropped)", False),
        ([5, -9, 9, 9 + 1e-13], "box outside its image (dropped)", False),
        ([50 - 1e-13, 5, 9, 5], "box outside its image (dropped)", False),
        ([45, 5, 9, 5], "box beyond the border (clipped)", False),
        ([5, -2, 9, 9], "box beyond the border (clipped)", False),
    ],
)
def test_each_kind_of_box(box: list[float], kind: str, is_fatal: bool):
    """Only boxes that training doesn't drop or clip are fatal."""
    (problem,) = box_problems(table([1, 1, 5, 5], box))
    assert problem.kind == kind and problem.image == 0 and problem.is_fatal == is_fatal
    assert problem.text.startswith("object 11 has the box (left, top, width, height) [")


@pytest.mark.filterwarnings("ignore:The annotations have 1 problems:UserWarning")
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_infinite_boxes_are_reported_once(value: float):
    """The reader reports boxes that aren't finite."""
    one = table([1, 1, 5, 5], [0, 0, value, 5])
    assert found([*one.problems, *box_problems(one)]) == [("wrong bbox", 0, True)]


def test_rounding_at_the_border_is_not_a_problem():
    """Rounded boxes don't cause thousands of notes."""
    assert found(box_problems(table([-0.9, 0, 50, 41]))) == []


def test_problems_of_classes_are_found():
    """Renumbered ids, repeated names and classes without objects are reported."""
    gappy = table([1, 1, 5, 5], names={1: "cat", 4: "dog", 9: "dog"})
    ids, names, unseen = class_problems(gappy)
    expected = "ids from 1 to 9, without 2, 3, 5, 6, 7 and 1 more become labels from 0 to 2"
    assert ids.text == expected
    assert names.text == "2 classes have the name 'dog'; names must be unique"
    assert unseen.text == "2 classes have no object: dog, dog"
    assert [problem.is_fatal for problem in (ids, names, unseen)] == [False, True, False]
    assert found(class_problems(table(names={}))) == [("classes", None, True)]


def test_names_that_differ_in_case_are_noted():
    """They are read as classes of their own."""
    same = table(*[[1, 1, 5, 5]] * 4, names=dict(enumerate(["Cat", "dog", "cat ", "owl"])))
    (problem,) = class_problems(same)
    assert problem.text.startswith("the names 'Cat', 'cat ' are nearly the same, but")
    assert not problem.is_fatal


@pytest.mark.parametrize("box", [[5, 5, 0, 5], [5, 5, 1e-14, 5], [50, 5, 9, 5], [5, -9, 9, 9]])
def test_dropped_boxes_are_no_objects_of_their_class(box: list[float]):
    """A class or an image of which training drops all boxes is reported as empty."""
    (unseen,) = class_problems(table([1, 1, 5, 5], box))
    assert unseen.text == "1 classes have no object: dog"
    kinds = [problem.kind for problem in count_problems(table(box), None)]
    assert kinds == ["no objects at all", "image without objects"]


def test_duplicates_have_equal_image_class_and_box():
    """Objects that differ in one of the three aren't duplicates."""
    box = [1.0, 1, 5, 5]
    (problem,) = duplicate_problems(table(box, box, box, [1, 1, 5, 6]))
    assert problem.text == "objects 10 and 12 have the same class and box"
    assert not problem.is_fatal
    assert found(duplicate_problems(table())) == []


def test_images_without_and_with_too_many_objects():
    """Too few queries and data sets without objects are reported."""
    some = table([1, 1, 5, 5], [2, 2, 5, 5], [3, 3, 5, 5], images=2)
    problems = list(count_problems(some, num_queries=2))
    assert found(problems) == [
        ("image without objects", 1, False),
        ("more objects than queries", 0, False),
    ]
    assert problems[1].text.startswith("3 objects, but only 2 queries")
    assert found(count_problems(some, num_queries=None)) == [("image without objects", 1, False)]
    assert found(count_problems(table(), None))[0] == ("no objects at all", None, True)
    assert found(count_problems(table(images=0), None)) == [("no images", None, True)]


def test_repeated_file_is_reported(tmp_path: Path):
    """Two images with the same file are a problem."""
    images = [{"id": i, "file_name": "1.png", "height": 40, "width": 50} for i in (1, 2)]
    dataset = read_coco(*write_coco(tmp_path, [entry(1)], images=images))
    (problem,) = repeated_image_problems(dataset)
    assert problem == Problem("image twice", 1, "the same file as image 0", False)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("decode", [True, False])
def test_image_files(tmp_path: Path, ending: str, decode: bool):
    """Missing, invalid, truncated and resized files are found, truncated ones by decoding."""
    kinds = ("valid", "half", "text", "missing", "large")
    images = [
        {"id": i, "file_name": f"{kind}.{ending}", "height": 40, "width": 50}
        for i, kind in enumerate(kinds)
    ]
    files = write_coco(tmp_path, [], images=images)
    folder = files[1]
    data = write_image(folder / f"valid.{ending}").read_bytes()
    (folder / f"half.{ending}").write_bytes(data[: len(data) // 2])
    (folder / f"text.{ending}").write_text("not an image")
    write_image(folder / f"large.{ending}", height=80)
    dataset = read_coco(*files)
    problems = [image_problems(dataset, index, decode) for index in range(len(kinds))]
    # WebP's decoder needs the whole file even for the size.
    half = [("unreadable image", 1, True)] if decode or ending == "webp" else []
    assert [found(of_image) for of_image in problems] == [
        [],
        half,
        [("unreadable image", 2, True)],
        [("missing image", 3, True)],
        [("image of another size", 4, True)],
    ]
    assert "(80, 50)" in problems[4][0].text


def test_invalid_and_empty_masks_are_reported_by_object(tmp_path: Path):
    """Segmentations are only checked if the data set has masks."""
    entries = [
        entry(1, segmentation=[[1, 2, 3]]),
        entry(2, segmentation=None),
        entry(3, segmentation=[[60, 50, 70, 50, 70, 60]]),
        entry(4, segmentation={"size": [40, 50], "counts": [3]}),
        entry(5),
    ]
    files = write_coco(tmp_path, entries)
    problems = image_problems(read_coco(*files, masks=True), 0, decode=True)
    assert found(problems) == [
        ("bad mask", 0, True),
        ("bad mask", 0, True),
        ("empty mask", 0, False),
        ("bad mask", 0, True),
    ]
    for number, problem in enumerate(problems, start=1):
        assert f"object {number}" in problem.text
    assert image_problems(read_coco(*files), 0, decode=True) == []


def test_segment_maps(tmp_path: Path):
    """Maps that are missing, have another size or lack a segment are reported."""
    missing = {"id": 5, "category_id": 2, "bbox": [1, 1, 3, 3], "area": 9}
    file, images, maps = write_panoptic(tmp_path, [*SEGMENTS, missing])
    dataset = read_coco_panoptic(file, images, maps)
    (problem,) = image_problems(dataset, 0, decode=True)
    assert problem.text.startswith("segments 5 have no pixel in") and not problem.is_fatal
    assert image_problems(dataset, 1, decode=True) == []
    PIL.Image.new("RGB", (20, 20)).save(maps / "one.png")
    assert found(image_problems(dataset, 0, decode=True)) == [("segment map", 0, True)]
    (maps / "one.png").unlink()
    assert found(image_problems(dataset, 0, decode=True)) == [("segment map", 0, True)]


def test_ids_with_huge_gaps_need_no_memory():
    """Ids may be hashes; the numbers between them are never listed."""
    sparse = table([1, 1, 5, 5], names={-(2**62): "cat", 2**62: "dog", 2**62 + 2: "owl"})
    ids = next(iter(class_problems(sparse)))
    assert f"ids from {-(2**62)} to {2**62 + 2}, without {1 - 2**62}, {2 - 2**62}, " in ids.text
    assert f" and {2**63 - 5} more become labels from 0 to 2" in ids.text


def unusual_image(path: Path, kind: str) -> None:
    """Write an image of 40 x 50 pixels whose header is fine."""
    values = np.arange(2000).reshape(40, 50) * (30 if kind == "int32" else 1)
    if kind in ("float", "int32"):
        PIL.Image.fromarray(values.astype(np.float32 if kind == "float" else np.int32)).save(path)
    else:
        write_image(path)


@pytest.mark.filterwarnings("ignore:Image size .* exceeds:PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", ["float", "int32", "large"])
def test_what_training_cannot_read_is_a_problem(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """The check decodes as training does: floats, integers of 32 bits, too many pixels."""
    images = [{"id": 1, "file_name": "1.tif", "height": 40, "width": 50}]
    files = write_coco(tmp_path, [entry(1)], images=images)
    unusual_image(tmp_path / "images" / "1.tif", kind)
    if kind == "large":
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1999)
    dataset = read_coco(*files)
    (problem,) = image_problems(dataset, 0, decode=True)
    assert (problem.kind, problem.is_fatal) == ("unreadable image", True)
    with pytest.raises(ValueError) as raised:
        dataset[0]
    assert problem.text in str(raised.value)


def test_boxes_are_checked_in_parts(monkeypatch: pytest.MonkeyPatch):
    """Images and rows are right in each part of a large table."""
    boxes = [[1, 1, 5, 5], [1, 1, 5, 5], [1, 1, 0, 5], [60, 1, 5, 5]]
    entries = [{"id": n, "category_id": 0, "bbox": box} for n, box in enumerate(boxes * 3)]
    owners = [n // 4 * 2 for n in range(12)]  # images 0, 2 and 4 of 5
    made = make_table({0: "cat"}, range(5), [(40, 50)] * 5, entries, owners, "coco_xywh")
    whole = [sorted(map(str, check(made))) for check in (box_problems, duplicate_problems)]
    assert [len(texts) for texts in whole] == [6, 3]
    for block in (1, 2, 3):
        monkeypatch.setattr("hf_detr.data.problems.BLOCK", block)
        parts = [sorted(map(str, check(made))) for check in (box_problems, duplicate_problems)]
        assert parts == whole
