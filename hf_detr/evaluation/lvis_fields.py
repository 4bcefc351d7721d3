"""Fields of LVIS' annotation file that its AP needs.

LVIS isn't annotated completely: each image was searched for some of the 1,203 classes only, those
of its objects and its "negative" ones, and for some of them not every object is annotated.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# Of a class: in 1 to 10, up to 100, or more training images.
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
IMAGE_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")


def lvis_image_fields(
    image: Mapping[str, Any], index_of_id: Mapping[int, int]
) -> dict[str, list[int]]:
    """Return the classes that an image doesn't have, and those without all of their objects.

    Args:
        image: an image of a COCO dict with LVIS' fields.
        index_of_id: category id -> index of the class; other ids are left out.

    Raises:
        ValueError: if the image doesn't have LVIS' fields.
    """
    if missing := set(IMAGE_FIELDS) - set(image):
        raise ValueError(
            f"image_id {image['id']} of the ground truth has no {sorted(missing)}, which LVIS' AP "
            "requires; pass the images of an LVIS file, or lvis=False."
        )
    return {
        key: [index_of_id[number] for number in image[key] if number in index_of_id]
        for key in IMAGE_FIELDS
    }


def lvis_frequency(category: Mapping[str, Any]) -> str:
    """Return a category's frequency, a key of `FREQUENCIES`.

    Raises:
        ValueError: if it isn't one.
    """
    frequency = category.get("frequency")
    if frequency not in FREQUENCIES:
        raise ValueError(
            f"category {category['id']} of the ground truth has the frequency {frequency!r}; LVIS' "
            f"AP requires one of {sorted(FREQUENCIES)}."
        )
    return frequency


def add_lvis_fields(
    ground_truth: Mapping[str, Any], lvis: Mapping[str, Any], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Return ground truth with the fields of an LVIS file.

    Args:
        ground_truth: of `DetectionDataset.ground_truth`, with labels as category ids.
        lvis: the content of the LVIS file that the data set was read from.
        category_ids: label -> category id in the file.

    Raises:
        ValueError: if the file doesn't have an image or a category of the ground truth.
    """
    images = {image["id"]: image for image in lvis["images"]}
    categories = {category["id"]: category for category in lvis["categories"]}
    truth_ids = [image["id"] for image in ground_truth["images"]]
    if not (set(truth_ids) <= set(images) and set(category_ids) <= set(categories)):
        raise ValueError(
            f"lvis has not all of the data set's {len(truth_ids)} images and {len(category_ids)} "
            "categories; pass the content of the file that the data set was read from."
        )
    label_of_id = {category_id: label for label, category_id in enumerate(category_ids)}
    return {
        **ground_truth,
        "images": [
            {**image, **lvis_image_fields(images[image["id"]], label_of_id)}
            for image in ground_truth["images"]
        ],
        "categories": [
            {**category, "frequency": lvis_frequency(categories[category_ids[category["id"]]])}
            for category in ground_truth["categories"]
        ],
    }
