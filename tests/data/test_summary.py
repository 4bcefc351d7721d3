"""Numbers that describe a data set."""

from pathlib import Path

import pytest

from hf_detr.data.coco import read_coco
from hf_detr.data.summary import summarize, summary_text

from ..some_data import entry, write_coco, write_image


def test_numbers_of_a_data_set(tmp_path: Path):
    """Counts, sizes and shares are those computed by hand; crowds are no objects for training."""
    entries = [
        *(entry(1), entry(2, bbox=[0, 0, 40, 40]), entry(3, image_id=2, bbox=[0, 0, 96, 96])),
        *(entry(4, category_id=18), entry(5, iscrowd=1)),
    ]
    images = [
        {"id": number, "file_name": f"{number}.png", "height": 10 * number, "width": 20 * number}
        for number in range(1, 4)
    ]
    file, folder = write_coco(tmp_path, entries, images=images)
    found = summarize(read_coco(file, folder).table)
    assert (found.images, found.objects, found.crowds) == (3, 4, 1)
    assert found.classes == {"car": 3, "dog": 1}
    assert found.width == (20, 40, 60) and found.height == (10, 20, 30)
    assert found.objects_per_image == (1, 3)
    assert found.box_sizes == {"small": 0.5, "medium": 0.25, "large": 0.25}


def test_nothing_is_a_summary_too(tmp_path: Path):
    """Data without images or objects can be described; boxes without area are dropped."""
    empty = summarize(read_coco(*write_coco(tmp_path, [], images=[])).table)
    assert (empty.images, empty.width, empty.objects_per_image) == (0, (0, 0, 0), (0, 0))
    flat = summarize(read_coco(*write_coco(tmp_path, [entry(1, bbox=[5, 5, 0, 5])])).table)
    assert flat.objects == 0 and set(flat.box_sizes.values()) == {0}


def test_table_has_a_column_per_split(tmp_path: Path):
    """The classes are those of all splits, the most frequent first; few are listed."""
    file, folder = write_coco(tmp_path, [entry(1), entry(2, category_id=18), entry(3)])
    train = summarize(read_coco(file, folder).table)
    other = write_coco(tmp_path / "val", [entry(1)], categories=[{"id": 3, "name": "cat"}])
    val = summarize(read_coco(*other).table)
    lines = summary_text({"train": train, "val": val}).splitlines()
    assert lines[0].split() == ["train", "val"] and lines[1].split() == ["images", "2", "2"]
    assert [line.split(None, 1)[0] for line in lines[-3:]] == ["car", "dog", "cat"]
    assert "no such class" in lines[-1] and "crowds" not in "".join(lines)
    assert len({len(line) for line in lines if "," in line}) == 1
    text = summary_text({"train": train, "val": val}, most=1)
    assert "car" in text and "dog" not in text and "... and 2 less frequent ones" in text


def test_sizes_of_unreadable_images_are_left_out(tmp_path: Path):
    """An image that can't be read isn't one of 0 pixels."""
    write_image(tmp_path / "images" / "1.png")
    images = [{"id": number, "file_name": f"{number}.png"} for number in (1, 9)]
    file, folder = write_coco(tmp_path, [entry(1)], images=images)
    with pytest.warns(UserWarning, match="can't be read"):
        assert summarize(read_coco(file, folder).table).width == (50, 50, 50)
