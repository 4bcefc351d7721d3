"""The data set class for training and evaluation, independent of the annotations' format."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import tv_tensors

from ..image_processing.coco_masks import rle_from_mask, stack_masks
from ..image_processing.coco_targets import prepare_detection_target
from .annotation_table import AnnotationTable
from .augmentation import seeded
from .image_source import (
    ImageSource,
    JoinedImages,
    SelectedImages,
    read_pixels,
    read_segment_ids,
    size_reason,
)
from .table_parts import join_tables, select_images

Example = tuple[tv_tensors.Image, dict[str, Tensor]]


class DetectionDataset(Dataset):
    """Images with annotated objects, returned by `read_coco` and the other readers.

    `dataset[i]` is `(image, target)`: the upright RGB image (3, H, W) uint8, and a dict of its
    `image_id` (1,), `class_labels` (n,), `boxes` (n, 4) as (x0, y0, x1, y1) in pixels, `area` (n,)
    in square pixels, `iscrowd` (n,), `orig_size` (2,) as (height, width) and, with `masks=True`,
    `masks` (n, H, W) bool. Image, boxes and masks are tv_tensors, which torchvision's transforms
    transform together. Crowds are removed and boxes clipped as in `prepare_detection_target`.

    Args:
        table: the annotations.
        images: the images, in the table's order.
        segment_maps: panoptic maps, in the same order, with the ids `table.ids`.
        masks: whether targets have masks.
        seed: the random numbers of the transform depend on it, the epoch and the index only, not
            on the number of workers or processes.

    Raises:
        ValueError: if `masks` is True and the data set has no masks.
    """

    def __init__(
        self,
        table: AnnotationTable,
        images: ImageSource,
        segment_maps: ImageSource | None = None,
        masks: bool = False,
        seed: int = 0,
    ) -> None:
        if masks and table.segmentations is None and segment_maps is None:
            raise ValueError("masks is True, but the data set has only boxes; pass masks=False.")
        self.table, self.images, self.segment_maps = table, images, segment_maps
        self.masks, self.seed = masks, seed
        self.transform: Callable[[Any, dict], Example] | None = None
        # Shared memory, because persistent workers have to see the new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._fatal = {
            problem.image: problem.text
            for problem in table.problems
            if problem.is_fatal and problem.image is not None
        }

    def __len__(self) -> int:
        return len(self.table)

    @property
    def id2label(self) -> dict[int, str]:
        """Class label -> name."""
        return self.table.id2label

    @property
    def category_ids(self) -> tuple[int, ...]:
        """Class label -> category id in the data set."""
        return self.table.category_ids

    @property
    def label_ids_of_stuff(self) -> frozenset[int]:
        """Class labels of stuff, such as sky or grass."""
        return self.table.label_ids_of_stuff

    def first(self, num_images: int) -> "DetectionDataset":
        """Return a data set of the first `num_images` images, with all classes and no transform."""
        return self.subset(range(min(num_images, len(self))))

    def subset(self, indices: Sequence[int]) -> "DetectionDataset":
        """Return a data set of some images, with all classes and no transform.

        Raises:
            ValueError: if an index is repeated.
            IndexError: if an index is outside the data set.
        """
        indices = [range(len(self))[index] for index in indices]
        if len(set(indices)) < len(indices):
            raise ValueError("indices has repeated images; expected each at most once.")
        images, maps = SelectedImages(self.images, indices), self.segment_maps
        maps = None if maps is None else SelectedImages(maps, indices)
        table = select_images(self.table, indices)
        return DetectionDataset(table, images, maps, self.masks, self.seed)

    def split(
        self, fraction: float, seed: int = 0
    ) -> tuple["DetectionDataset", "DetectionDataset"]:
        """Divide the images at random, for example into training and validation data.

        Both parts have all classes and no transform. Unlike those of torch's `random_split`, each
        can have a transform of its own.

        Args:
            fraction: part of the images in the second data set, at least one.
            seed: the division depends on it only.

        Returns:
            The data set of the remaining images, and that of the fraction.

        Raises:
            ValueError: if one of them would have no images.
        """
        number = max(1, round(fraction * len(self))) if 0 < fraction < 1 else 0
        if not 0 < number < len(self):
            raise ValueError(
                f"fraction is {fraction} of {len(self)} images; expected a number between 0 and 1 "
                "that leaves images in both parts."
            )
        order = np.random.default_rng(seed).permutation(len(self)).tolist()
        return self.subset(sorted(order[number:])), self.subset(sorted(order[:number]))

    def __add__(self, other: Dataset) -> "DetectionDataset":
        other = as_detection_dataset(other)
        joined = join_datasets([self, other])
        if self.transform is other.transform:
            joined.transform = self.transform
        else:
            warnings.warn("The transforms differ, so that the sum has none.", stacklevel=2)
        return joined

    def image_hw(self, index: int) -> tuple[int, int]:
        """Return the height and width of an image in pixels, without opening it."""
        height, width = self.table.image_hw[index].tolist()
        return height, width

    def set_transform(self, transform: Callable[[Any, dict], Example] | None) -> None:
        """Set the `transform(image, target)` that is applied to each example.

        Its random numbers must come from torch's global generator, as in torchvision.
        """
        self.transform = transform

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, for new random numbers in the transform; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Example:
        return self.example(index, int(self._epoch))

    def example(self, index: int, epoch: int) -> Example:
        """Return an example as it is in an epoch, whatever was set."""
        index = range(len(self))[index]  # negative and invalid indices as in a list
        if index in self._fatal:
            raise ValueError(f"{self.images.name(index)}: {self._fatal[index]}.")
        image = read_pixels(self.images, index)
        check_size(self.images, index, tuple(image.shape[1:]), self.image_hw(index))
        target = self._target(index)
        if self.transform is None:
            return tv_tensors.Image(image), target
        with seeded(self.seed, epoch, index):
            return self.transform(tv_tensors.Image(image), target)

    def _target(self, index: int) -> dict[str, Tensor]:
        table, size_hw = self.table, self.image_hw(index)
        # The row instead of the class identifies the objects that are kept.
        entries = [
            {**entry, "category_id": row}
            for entry, row in zip(self._entries(index), table.rows(index), strict=True)
        ]
        record = {"image_id": int(table.image_ids[index]), "annotations": entries}
        target = prepare_detection_target(record, size_hw)
        rows = target["class_labels"]
        target["class_labels"] = torch.from_numpy(table.class_labels[rows.numpy()])
        target["boxes"] = tv_tensors.BoundingBoxes(
            target["boxes"], format="XYXY", canvas_size=size_hw
        )
        if self.masks:
            target["masks"] = tv_tensors.Mask(self.object_masks(index, rows.tolist()))
        del target["size"]  # a transform that doesn't update it would make it wrong
        return target

    def object_masks(self, index: int, rows: list[int]) -> Tensor:
        """Compute the masks (n, H, W) bool of the given rows of an image.

        Raises:
            ValueError, TypeError: if a segmentation is invalid.
        """
        size_hw = self.image_hw(index)
        if self.segment_maps is not None and rows:
            segment_ids = read_segment_ids(self.segment_maps, index)
            if segment_ids.shape != size_hw:
                raise ValueError(
                    f"{self.segment_maps.name(index)} has {tuple(segment_ids.shape)} pixels "
                    f"(height, width), but its image has {size_hw}; fix the segment map."
                )
            return segment_ids == torch.from_numpy(self.table.ids[rows])[:, None, None]
        image = self.images.name(index)
        table = self.table
        named = [(table.segmentations[row], f"{image}, object {table.ids[row]}") for row in rows]
        return stack_masks(named, size_hw)

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO dict for evaluation, in original pixels, with crowds.

        Category ids are class labels. There are segmentations if `masks` is True.

        Raises:
            ValueError: if an image has fatal problems.
        """
        if self._fatal:
            raise ValueError(
                f"{len(self._fatal)} images have invalid annotations, such as: "
                f"{next(iter(self._fatal.values()))}. Fix them before evaluation; "
                "`hf-detr check` lists all of them."
            )
        images = [
            {"id": int(image_id), "file_name": self.images.name(i), "height": h, "width": w}
            for i, (image_id, (h, w)) in enumerate(
                zip(self.table.image_ids, self.table.image_hw.tolist(), strict=True)
            )
        ]
        annotations = []
        for index in range(len(self)):
            entries = self._entries(index)
            segmentations = self._segmentations(index) if self.masks else []
            for entry, segmentation in zip(entries, segmentations, strict=self.masks):
                entry["segmentation"] = segmentation
            for entry in entries:
                width, height = entry["bbox"][2:]
                entry["area"] = width * height if entry["area"] is None else entry["area"]
            annotations += entries
        categories = [{"id": label, "name": name} for label, name in self.id2label.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _entries(self, index: int) -> list[dict[str, Any]]:
        """Return an image's objects as COCO annotations; an area that isn't given is None."""
        table = self.table
        return [
            {
                "id": row + 1,  # in pycocotools, id 0 means "not matched"
                "image_id": int(table.image_ids[index]),
                "category_id": int(table.class_labels[row]),
                "bbox": table.boxes_xywh[row].tolist(),
                "area": None if np.isnan(table.areas[row]) else float(table.areas[row]),
                "iscrowd": int(table.is_crowd[row]),
            }
            for row in table.rows(index)
        ]

    def _segmentations(self, index: int) -> list[Any]:
        rows = list(self.table.rows(index))
        if self.segment_maps is None:
            return [self.table.segmentations[row] for row in rows]
        return list(map(rle_from_mask, self.object_masks(index, rows)))


def check_size(
    source: ImageSource, index: int, pixels_hw: tuple[int, int], annotated_hw: tuple[int, int]
) -> None:
    """Check that an image has its annotations' size, and raise ValueError if it hasn't."""
    if pixels_hw != annotated_hw:
        raise ValueError(
            f"{source.name(index)} has {pixels_hw[1]} x {pixels_hw[0]} pixels (width x height, "
            f"upright), but its annotations are for {annotated_hw[1]} x {annotated_hw[0]}; fix the "
            f"image or the annotations{size_reason(source, index, annotated_hw)}."
        )


def join_datasets(datasets: Sequence[DetectionDataset]) -> DetectionDataset:
    """Return a data set of the images of several, without transform.

    Image ids become 0, 1, 2, … if an id is in several data sets.

    Raises:
        ValueError: if the data sets differ in their classes or in whether they have masks.
    """
    if len({(data.masks, data.segment_maps is None) for data in datasets}) > 1:
        raise ValueError("Some of the data sets have masks or segment maps, others don't.")
    first, lengths = datasets[0], list(map(len, datasets))
    images = JoinedImages([data.images for data in datasets], lengths)
    maps = [data.segment_maps for data in datasets if data.segment_maps is not None]
    maps = JoinedImages(maps, lengths) if maps else None
    table = join_tables([data.table for data in datasets])
    return DetectionDataset(table, images, maps, first.masks, first.seed)


def as_detection_dataset(dataset: Dataset) -> DetectionDataset:
    """Convert torch's `Subset`, as of `random_split`, and `ConcatDataset` to a data set of ours.

    Raises:
        TypeError: if it contains other data sets.
        ValueError: as in `join_datasets`, or if a subset has an image twice.
    """
    if isinstance(dataset, DetectionDataset):
        return dataset
    if isinstance(dataset, Subset):
        whole = as_detection_dataset(dataset.dataset)
        part = whole.subset(dataset.indices)
        part.transform = whole.transform
        return part
    if isinstance(dataset, ConcatDataset):
        return join_datasets(list(map(as_detection_dataset, dataset.datasets)))
    raise TypeError(
        f"The data set is a {type(dataset).__name__}; expected a DetectionDataset, or a Subset or "
        "ConcatDataset of these; read_data makes one of other data sets."
    )
