"""Ground truth of COCO metrics: images and classes with indices, and objects in flat arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .lvis_fields import lvis_frequency, lvis_image_fields


@dataclass(frozen=True)
class ObjectColumns:
    """n annotated objects."""

    images: np.ndarray  # (n,) int32, indices of images
    labels: np.ndarray  # (n,) int32, indices of classes
    boxes_xywh: np.ndarray  # (n, 4) float64, left, top, width, height in pixels
    areas: np.ndarray  # (n,) float64 in square pixels
    is_crowd: np.ndarray  # (n,) bool
    segmentations: list[Any] | None  # COCO polygons or RLE of each object


@dataclass(frozen=True)
class GroundTruth:
    """Ground truth as the backend reads it: the ids of images and categories are indices."""

    image_ids: list[int]  # of each index, sorted
    labels: list[int]  # category id of each index, sorted
    index_of_image: dict[int, int]
    index_of_label: dict[int, int]
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    objects: ObjectColumns | None

    @property
    def frequencies(self) -> list[str]:
        """LVIS' frequency of each class; empty for COCO's rules."""
        return [entry["frequency"] for entry in self.categories if "frequency" in entry]

    def size_hw(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of an image."""
        return self.images[index]["height"], self.images[index]["width"]


def read_ground_truth(ground_truth: Mapping[str, Any], masks: bool, lvis: bool) -> GroundTruth:
    """Read a COCO dict.

    Args:
        ground_truth: as in a COCO file.
        masks: whether to read segmentations.
        lvis: whether to read LVIS' fields.

    Raises:
        ValueError: if two categories have the same name, an image or category is unknown, or a
            segmentation or one of LVIS' fields is missing.
    """
    images = {int(image["id"]): image for image in ground_truth["images"]}
    categories = {int(category["id"]): category for category in ground_truth["categories"]}
    names = {str(category["name"]) for category in categories.values()}
    if len(names) < len(categories):
        raise ValueError("Two categories have the same name; names must be unique.")
    image_ids, labels = sorted(images), sorted(categories)
    index_of_image = {image_id: index for index, image_id in enumerate(image_ids)}
    index_of_label = {label: index for index, label in enumerate(labels)}
    image_entries, category_entries = [], []
    for index, image in enumerate(images[image_id] for image_id in image_ids):
        size = {key: image.get(key, 0) for key in ("height", "width")}  # only masks need it
        fields = lvis_image_fields(image, index_of_label) if lvis else {}
        image_entries.append({"id": index, **size, **fields})
    for index, category in enumerate(categories[label] for label in labels):
        fields = {"frequency": lvis_frequency(category)} if lvis else {}
        category_entries.append({"id": index, "name": str(category["name"]), **fields})
    objects = _read_objects(ground_truth["annotations"], index_of_image, index_of_label, masks)
    return GroundTruth(
        image_ids, labels, index_of_image, index_of_label, image_entries, category_entries, objects
    )


def _read_objects(
    annotations: Sequence[Mapping[str, Any]],
    index_of_image: Mapping[int, int],
    index_of_label: Mapping[int, int],
    masks: bool,
) -> ObjectColumns:
    """Convert COCO annotations. An object without `area` has that of its box."""
    images, labels, areas, segmentations = [], [], [], []
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64)
    boxes = boxes.reshape(-1, 4)
    for number, annotation in enumerate(annotations):
        image_id, category_id = int(annotation["image_id"]), int(annotation["category_id"])
        if image_id not in index_of_image or category_id not in index_of_label:
            raise ValueError(
                f"annotation {number} of the ground truth has image_id {image_id} and category_id "
                f"{category_id}; expected ids of its images and categories."
            )
        if masks and not annotation.get("segmentation"):
            raise ValueError(
                f"annotation {number} of the ground truth has no segmentation, which 'segm' "
                "requires; read the data set with masks=True."
            )
        images.append(index_of_image[image_id])
        labels.append(index_of_label[category_id])
        area = annotation.get("area")
        areas.append(boxes[number, 2] * boxes[number, 3] if area is None else area)
        segmentations.append(annotation["segmentation"] if masks else None)
    is_crowd = [bool(annotation.get("iscrowd")) for annotation in annotations]
    return ObjectColumns(
        images=np.array(images, dtype=np.int32),
        labels=np.array(labels, dtype=np.int32),
        boxes_xywh=boxes,
        areas=np.array(areas, dtype=np.float64),
        is_crowd=np.array(is_crowd, dtype=bool),
        segmentations=segmentations if masks else None,
    )
