"""Tables of some images, and of those of several tables."""

import numpy as np
import pytest

from hf_detr.data.annotation_table import AnnotationTable, Problem, make_table
from hf_detr.data.table_parts import join_tables, select_images

from ..some_data import entry

NAMES = {3: "car", 18: "dog"}


def some_table(first_id: int = 0, names: dict[int, str] = NAMES) -> AnnotationTable:
    """Make a table of 4 images, 0 to 3 of which have as many objects, with masks and problems."""
    entries = [entry(10 * i + j, segmentation=[[i, j]]) for i in range(4) for j in range(i)]
    owners = [i for i in range(4) for _ in range(i)]
    problems = [Problem("a", 2, "of image 2", False), Problem("b", None, "of all", False)]
    ids, sizes = range(first_id, first_id + 4), [(40 + i, 50) for i in range(4)]
    with pytest.warns(UserWarning, match="of all"):
        return make_table(
            names, ids, sizes, entries, owners, "coco_xywh", problems=problems, masks=True
        )


def objects(table: AnnotationTable) -> list[tuple]:
    """Return each image's id, height, object ids and masks."""
    return [
        (
            int(table.image_ids[image]),
            int(table.image_hw[image, 0]),
            table.ids[table.rows(image)].tolist(),
            [table.segmentations[row] for row in table.rows(image)],
        )
        for image in range(len(table))
    ]


@pytest.mark.parametrize("images", [[3, 1], [0], [], range(4)])
def test_selected_images_keep_their_objects(images: list[int]):
    """Order, sizes, masks and problems follow the images."""
    table = some_table()
    part = select_images(table, images)
    whole = objects(table)
    assert objects(part) == [whole[image] for image in images]
    assert part.id2label == table.id2label and part.image_hw.shape == (len(images), 2)
    assert [p.image for p in part.problems if p.kind == "a"] == (
        [list(images).index(2)] if 2 in images else []
    )
    assert [p.text for p in part.problems if p.kind == "b"] == ["of all"]


def test_joined_tables_keep_their_objects():
    """The second table's images come after those of the first."""
    one, two = some_table(), some_table(first_id=7)
    joined = join_tables([one, two])
    assert objects(joined) == objects(one) + objects(two)
    assert [p.image for p in joined.problems] == [2, None, 6, None]
    assert objects(select_images(joined, range(4, 8))) == objects(two)


def test_image_ids_of_joined_tables_are_unique():
    """Detections would be counted for the wrong image."""
    joined = join_tables([some_table(), some_table(first_id=2)])
    assert joined.image_ids.tolist() == list(range(8))
    assert np.array_equal(joined.image_hw[4:], some_table().image_hw)


def test_tables_of_different_classes_are_not_joined():
    """Label 0 would mean two classes."""
    with pytest.raises(ValueError, match="different classes.*'cat'.*'car'"):
        join_tables([some_table(), some_table(names={3: "cat", 18: "dog"})])
