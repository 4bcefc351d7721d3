"""One data set interface for training and evaluation, whatever format the annotations came in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .annotation_table import AnnotationTable
from .annotations import prepare_detection_target
from .coco_masks import masks_from_segmentation, rle_from_mask
from .image_source import ImageSource, read_pixels, read_segment_ids

Example = tuple[tv_tensors.Image, dict[str, Tensor]]


class DetectionDataset(Dataset):
    """Images with their objects; made by `read_coco` and its siblings.

    `dataset[i]` is `(image, target)`: the image (3, H, W) uint8, RGB, upright, and a dict of its
    `image_id` (1,), `class_labels` (n,), `boxes` (n, 4) as (x0, y0, x1, y1) in pixels, `area` (n,)
    in square pixels, `iscrowd` (n,), `orig_size` (2,) as (height, width) and, if asked for, `masks`
    (n, H, W) bool. Image, boxes and masks are tv_tensors, so torchvision's transforms keep them
    together. Crowds are left out and boxes clipped as in `prepare_detection_target`.

    Args:
        table: the annotations.
        images: the images, in the table's order.
        segment_maps: panoptic maps, in the same order, whose ids are `table.ids`.
        masks: whether targets have masks.
        seed: what the transform's randomness follows from, with the epoch and the index: neither
            the number of workers nor that of processes changes what an example looks like.

    Raises:
        ValueError: if masks are asked for and the data have none.
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
            raise ValueError("masks=True, but the data have boxes only; leave masks out.")
        self.table, self.images, self.segment_maps = table, images, segment_maps
        self.masks, self.seed = masks, seed
        self.transform: Callable[[Any, dict], Example] | None = None
        # Shared, so that workers that live on through several epochs see the new one.
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
        """Class label -> the data's own category id."""
        return self.table.category_ids

    @property
    def label_ids_of_stuff(self) -> frozenset[int]:
        """Class labels that are stuff (sky, grass), not things."""
        return self.table.label_ids_of_stuff

    def first(self, num_images: int) -> "DetectionDataset":
        """The first images alone, with all classes and no transform."""
        table = self.table.first(num_images)
        return DetectionDataset(table, self.images, self.segment_maps, self.masks, self.seed)

    def image_hw(self, index: int) -> tuple[int, int]:
        """Height and width of an image in pixels, without opening it."""
        height, width = self.table.image_hw[index].tolist()
        return height, width

    def set_transform(self, transform: Callable[[Any, dict], Example] | None) -> None:
        """Pass every `(image, target)` through `transform(image, target)`.

        It must draw from torch's global generator, as torchvision's transforms do.
        """
        self.transform = transform

    def set_epoch(self, epoch: int) -> None:
        """Make the transform draw anew; call it before each epoch's iteration."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]  # negative and outside as in a list
        if index in self._fatal:
            raise ValueError(f"{self.images.name(index)}: {self._fatal[index]}.")
        image = read_pixels(self.images, index)
        height, width = self.image_hw(index)
        if image.shape[1:] != (height, width):
            raise ValueError(
                f"{self.images.name(index)} has {image.shape[2]} x {image.shape[1]} pixels (width "
                f"x height, upright), its annotations are for {width} x {height}: mend either."
            )
        target = self._target(index)
        if self.transform is None:
            return tv_tensors.Image(image), target
        with _Seeded(self.seed, int(self._epoch), index):
            return self.transform(tv_tensors.Image(image), target)

    def _target(self, index: int) -> dict[str, Tensor]:
        table, size_hw = self.table, self.image_hw(index)
        entries = [
            {
                # The row in the place of the class, so that what is left tells which it was.
                "category_id": row,
                "bbox": table.boxes_xywh[row].tolist(),
                "area": None if np.isnan(table.areas[row]) else float(table.areas[row]),
                "iscrowd": int(table.is_crowd[row]),
            }
            for row in table.rows(index)
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
        del target["size"]  # a transform that forgets it would leave a wrong one
        return target

    def object_masks(self, index: int, rows: list[int]) -> Tensor:
        """Masks (n, H, W) bool of some of an image's rows of the table.

        Raises:
            ValueError, TypeError: if a segmentation can't be right; the message names it.
        """
        size_hw = self.image_hw(index)
        if self.segment_maps is not None and rows:
            segment_ids = read_segment_ids(self.segment_maps, index)
            if segment_ids.shape != size_hw:
                raise ValueError(
                    f"{self.segment_maps.name(index)} has {tuple(segment_ids.shape)} pixels "
                    f"(height, width), its image {size_hw}; they must be equal."
                )
            return segment_ids == torch.from_numpy(self.table.ids[rows])[:, None, None]
        masks = torch.zeros((len(rows), *size_hw), dtype=torch.bool)
        for place, row in enumerate(rows):
            name = f"{self.images.name(index)}, object {self.table.ids[row]}"
            masks[place] = masks_from_segmentation(self.table.segmentations[row], size_hw, name)
        return masks

    def ground_truth(self) -> dict[str, Any]:
        """The data as COCO's instances dict, for evaluation: original pixels, crowds included.

        Category ids are class labels. Segmentations are there if `masks` were asked for.

        Raises:
            ValueError: if an image has problems that forbid training.
        """
        if self._fatal:
            raise ValueError(
                "these data can't be evaluated on, such as for: "
                f"{next(iter(self._fatal.values()))}. `hf-detr check` lists all of them."
            )
        images = [
            {"id": int(image_id), "file_name": self.images.name(i), "height": h, "width": w}
            for i, (image_id, (h, w)) in enumerate(
                zip(self.table.image_ids, self.table.image_hw.tolist(), strict=True)
            )
        ]
        annotations = [entry for image in range(len(self)) for entry in self._true_entries(image)]
        categories = [{"id": label, "name": name} for label, name in self.id2label.items()]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _true_entries(self, index: int) -> list[dict[str, Any]]:
        table, rows = self.table, self.table.rows(index)
        entries = []
        for row in rows:
            box = table.boxes_xywh[row].tolist()
            area = table.areas[row]
            entries.append(
                {
                    "id": row + 1,  # pycocotools takes the id 0 for "not matched"
                    "image_id": int(table.image_ids[index]),
                    "category_id": int(table.class_labels[row]),
                    "bbox": box,
                    "area": box[2] * box[3] if np.isnan(area) else float(area),
                    "iscrowd": int(table.is_crowd[row]),
                }
            )
        if not self.masks:
            return entries
        if self.segment_maps is None:
            segmentations = [table.segmentations[row] for row in rows]
        else:
            segmentations = map(rle_from_mask, self.object_masks(index, list(rows)))
        for entry, segmentation in zip(entries, segmentations, strict=True):
            entry["segmentation"] = segmentation
        return entries


class _Seeded:
    """Draw from torch's CPU generator as seeded by `numbers`; afterwards it goes on as before."""

    # Not torch.manual_seed, which also queues a seed for CUDA, with a stack trace, per call.
    def __init__(self, *numbers: int) -> None:
        self.seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

    def __enter__(self) -> None:
        self.before = torch.get_rng_state()
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self.before)
