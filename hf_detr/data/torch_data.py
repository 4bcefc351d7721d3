"""Torch data sets in torchvision's form as data sets of this package."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from tqdm.auto import tqdm

from ..image_processing.coco_masks import rle_from_mask
from .annotation_table import Problem, make_table
from .dataset import DetectionDataset

NAMES = ("id2label", "classes", "names")  # attributes of data sets with the classes' names
EXPECTED = (
    "expected (image, target), with a PIL image or a tensor (C, H, W), and a dict of 'boxes' (n, "
    "4) as (x0, y0, x1, y1) in pixels and 'labels' (n,)"
)
COMPARED = 8  # items that are read twice, to find out whether they are the same


class TorchImages:
    """The images of a torch data set, read on access and converted to 8 bits if they are floats."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def name(self, index: int) -> str:
        return f"item {index} of {type(self._dataset).__name__}"

    def open(self, index: int) -> PIL.Image.Image:
        return as_pil_image(self._dataset[index][0])

    def stamp(self, index: int) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.open(index)).tobytes()).hexdigest()


def read_torch_dataset(
    dataset: Dataset,
    id2label: Mapping[int, str] | None = None,
    masks: bool = False,
    seed: int = 0,
) -> DetectionDataset:
    """Read a map-style torch data set whose items are `(image, target)`, in torchvision's form.

    All targets are read once, images again when they are used. Pixels and boxes are used as they
    are: an orientation in EXIF data is ignored. The target of an image without objects may have
    its `image_id` only.

    Args:
        dataset: items are a PIL image or a tensor (C, H, W), uint8 or float in [0, 1], and a dict
            of `boxes` (n, 4) as (x0, y0, x1, y1) in pixels, `labels` (n,), and optionally
            `image_id`, `area` (n,), `iscrowd` (n,) and `masks` (n, H, W).
        id2label: names of the labels; by default those in the data set's attribute `id2label`,
            `classes` or `names`.
        masks: whether to keep the masks.
        seed: seed of the transform's random numbers.

    Raises:
        TypeError: if the data set isn't map-style.
        ValueError: if items have another form or change between two reads, or if there are no
            names.
    """
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"The data set is a {type(dataset).__name__}; expected one with a length and items "
            "dataset[i], since an epoch reads them in another order."
        )
    names = id2label or _names_of(dataset)
    if names is None:
        raise ValueError(
            f"The classes of {type(dataset).__name__} have no names; pass names={{1: 'cat', ...}}, "
            f"or give the data set one of the attributes {', '.join(NAMES)}."
        )
    _check_items_stay(dataset)
    entries, owners, image_ids, sizes_hw = [], [], [], []
    for index in tqdm(range(len(dataset)), desc="targets", unit="item", disable=None):
        image, target = _checked_item(dataset, index)
        found = _entries(target, masks, f"item {index}")
        entries += found
        owners += [index] * len(found)
        image_ids.append(int(target.get("image_id", index)))
        sizes_hw.append(_size_hw(image))
    problems = []
    if len(set(image_ids)) < len(image_ids):
        problems.append(Problem("image ids", None, "image_id repeats; indices replace it", False))
        image_ids = list(range(len(dataset)))
    table = make_table(
        *(names, image_ids, sizes_hw, entries, owners, "xyxy"),
        problems=problems,
        masks=masks,
        has_fixed_format=True,
    )
    return DetectionDataset(table, TorchImages(dataset), masks=masks, seed=seed)


def as_pil_image(image: Any) -> PIL.Image.Image:
    """Convert an image of a torch data set.

    Args:
        image: a PIL image, or a tensor (C, H, W) of 1 or 3 channels, uint8 or float in [0, 1].

    Raises:
        ValueError: if it is something else.
    """
    if isinstance(image, PIL.Image.Image):
        copy = image.copy()  # its reader closes it
        # Without EXIF orientation, because the boxes are those of these pixels.
        copy.info = {key: value for key, value in image.info.items() if key == "transparency"}
        return copy
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) not in (1, 3):
        shape = f" of shape {tuple(image.shape)}" if isinstance(image, Tensor) else ""
        raise ValueError(
            f"The image is a {type(image).__name__}{shape}; expected a PIL image, or a tensor (C, "
            "H, W) of 1 or 3 channels."
        )
    pixels = image.detach().cpu().as_subclass(Tensor)
    if pixels.is_floating_point():
        low, high = pixels.aminmax()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"The image is a tensor of floats from {low:.3g} to {high:.3g}; expected 0 to 1. "
                "Remove the normalization, which the image processor does."
            )
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"The image is a tensor of {pixels.dtype}; expected uint8 or float.")
    array = pixels.permute(1, 2, 0).numpy()
    return PIL.Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def _names_of(dataset: Any) -> dict[int, str] | None:
    """Return label -> name from an attribute of a data set, or of those that it is made of."""
    if isinstance(dataset, Subset):
        return _names_of(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        found = list(map(_names_of, dataset.datasets))
        return found[0] if all(one == found[0] for one in found) else None
    for name in NAMES:
        value = getattr(dataset, name, None)
        if isinstance(value, Mapping) and value:
            return dict(value)
        if isinstance(value, Sequence) and value and all(isinstance(one, str) for one in value):
            return dict(enumerate(value))
    return None


def _check_items_stay(dataset: Any) -> None:
    """Check that items don't change, as with random transforms: boxes would be of other images."""
    for index in range(COMPARED if len(dataset) else 0):
        one, other = (_checked_item(dataset, index % len(dataset)) for _ in range(2))
        has_same_pixels = np.array_equal(
            *(np.asarray(as_pil_image(item[0])) for item in (one, other))
        )
        first, second = (_entries(item[1], name=f"item {index}") for item in (one, other))
        if not has_same_pixels or repr(first) != repr(second):  # as text, because of NaN
            raise ValueError(
                f"item {index} of {type(dataset).__name__} isn't the same when it is read twice; "
                "remove random transforms, and use set_transform(make_training_transform(…))."
            )


def _checked_item(dataset: Any, index: int) -> tuple[Any, Mapping[str, Any]]:
    item = dataset[index]
    is_pair = isinstance(item, tuple | list) and len(item) == 2
    if not is_pair or not isinstance(item[1], Mapping):
        parts = ", ".join(type(part).__name__ for part in item) if is_pair else ""
        found = f"({parts})" if is_pair else f"a {type(item).__name__}"
        raise ValueError(
            f"item {index} of {type(dataset).__name__} is {found}; {EXPECTED}. torchvision's own "
            "data sets have this form after wrap_dataset_for_transforms_v2."
        )
    return item


def _entries(
    target: Mapping[str, Any], masks: bool = False, name: str = ""
) -> list[dict[str, Any]]:
    """Return the objects of a target with COCO's keys."""
    if "boxes" not in target and "labels" not in target and "image_id" in target:
        return []
    keys = [key for key in ("boxes", "labels") if key not in target]
    if keys:
        raise ValueError(f"{name} has a target without {' and '.join(keys)}; {EXPECTED}.")
    if masks and "masks" not in target:
        raise ValueError(f"masks is True, but {name} has a target without masks.")
    optional = ["area", "iscrowd", "masks"][: 3 if masks else 2]
    columns = {key: target[key] for key in ("boxes", "labels", *optional) if key in target}
    if not isinstance(columns["labels"], Tensor):
        texts = [label for label in columns["labels"] if isinstance(label, str)]
        if texts:
            raise ValueError(
                f"{name} has the label {str(texts[0])!r}; labels must be integers. Map the names "
                f"to numbers, and pass names={{0: {str(texts[0])!r}, ...}}."
            )
    columns = {key: _plain(value, key) for key, value in columns.items()}
    if len(set(map(len, columns.values()))) > 1:
        lengths = {key: len(value) for key, value in columns.items()}
        raise ValueError(f"{name} has a target with values of different lengths, {lengths}.")
    renamed = {"boxes": "bbox", "labels": "category_id", "masks": "segmentation"}
    return [
        {renamed.get(key, key): value for key, value in zip(columns, values, strict=True)}
        for values in zip(*columns.values(), strict=True)
    ]


def _plain(values: Any, key: str) -> list[Any]:
    tensor = torch.as_tensor(values).as_subclass(Tensor)
    if key == "masks":
        return [rle_from_mask(mask.bool()) for mask in tensor]
    if getattr(values, "format", None) is not None and str(values.format.value) != "XYXY":
        raise ValueError(f"The boxes have the format {values.format.value}; expected XYXY.")
    return tensor.tolist()


def _size_hw(image: Any) -> tuple[int, int]:
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    return int(image.shape[-2]), int(image.shape[-1])
