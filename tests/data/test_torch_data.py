"""Torch data sets in torchvision's form are read like others."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision import tv_tensors

from hf_detr.data.check import check_dataset
from hf_detr.data.torch_data import as_pil_image, read_torch_dataset

NAMES = {1: "cat", 2: "dog"}


def pixels(index: int) -> Tensor:
    """Noise (3, 40, 50) uint8, another one for each image."""
    generator = torch.Generator().manual_seed(index)
    return torch.randint(256, (3, 40, 50), dtype=torch.uint8, generator=generator)


def target_of(index: int) -> dict[str, Any]:
    mask = torch.zeros(1, 40, 50, dtype=torch.uint8)
    mask[0, 5:13, 10:30] = 1
    values = {"boxes": torch.tensor([[10.0, 5, 30, 13]]), "labels": torch.tensor([1 + index % 2])}
    return {**values, "image_id": torch.tensor([index + 70]), "masks": mask}


class Items(Dataset):
    """A torch data set of three items."""

    def __init__(
        self, image: Callable[[int], Any] = pixels, target: Callable[[int], Any] = target_of
    ) -> None:
        self.image, self.target, self.reads = image, target, 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.reads += 1
        return self.image(index), self.target(index)


def pil(index: int) -> PIL.Image.Image:
    return PIL.Image.fromarray(pixels(index).permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    "image", [pixels, pil, lambda i: pixels(i) / 255, lambda i: tv_tensors.Image(pixels(i))]
)
def test_items_become_examples(image: Callable[[int], Any]):
    """Tensors and PIL images give the same pixels; ids, classes, boxes and masks are kept."""
    dataset = read_torch_dataset(Items(image), NAMES, masks=True, seed=4)
    assert dataset.id2label == {0: "cat", 1: "dog"} and dataset.seed == 4
    found, target = dataset[1]
    assert torch.equal(found.as_subclass(Tensor), pixels(1)) and dataset.image_hw(1) == (40, 50)
    assert target["boxes"].tolist() == [[10, 5, 30, 13]] and target["class_labels"].tolist() == [1]
    assert target["image_id"].tolist() == [71] and target["masks"].sum() == 160
    assert check_dataset(dataset, use_cache=False).may_train


def test_images_are_read_when_they_are_used():
    """The targets are read once."""
    items = Items()
    dataset = read_torch_dataset(items, NAMES)
    before = items.reads
    assert dataset.image_hw(2) == (40, 50) and len(dataset.table.ids) == 3
    assert items.reads == before
    dataset[2]
    assert items.reads == before + 1


def test_names_are_those_of_the_data_set():
    """`classes` of torchvision's data sets, also of parts; otherwise they have to be given."""
    items = Items()
    with pytest.raises(ValueError, match=r"classes of Items have no names; pass names=\{1: 'cat'"):
        read_torch_dataset(items)
    items.classes = ["background", "cat", "dog"]
    for data in (items, Subset(items, [2, 0]), ConcatDataset([Subset(items, [0])])):
        assert read_torch_dataset(data).id2label == {0: "background", 1: "cat", 2: "dog"}
    assert read_torch_dataset(Subset(items, [2, 0])).table.image_ids.tolist() == [72, 70]
    items.id2label = NAMES
    assert read_torch_dataset(items).id2label == {0: "cat", 1: "dog"}
    with pytest.raises(ValueError, match="have no names"):
        read_torch_dataset(ConcatDataset([items, Items()]))


def test_images_without_objects():
    """Empty boxes, or torchvision's wrapped COCO data, whose targets have only an id then."""
    boxes = {"boxes": torch.zeros(0, 4), "labels": []}
    for target in (lambda i: boxes, lambda i: {"image_id": i}):
        data = read_torch_dataset(Items(target=target), NAMES)
        assert len(data[0][1]["boxes"]) == 0


def test_optional_values():
    """Crowds and areas are used; repeated ids are replaced with a note."""
    more = {"iscrowd": torch.tensor([False]), "area": torch.tensor([7.5]), "image_id": 3}
    with pytest.warns(UserWarning, match="image_id repeats; indices replace it"):
        data = read_torch_dataset(Items(target=lambda i: {**target_of(i), **more}), NAMES)
    assert data[0][1]["area"].tolist() == [7.5] and data.table.image_ids.tolist() == [0, 1, 2]


def test_the_orientation_of_a_photo_is_ignored():
    """Boxes are those of the pixels that the data set returns."""

    def turned(index: int) -> PIL.Image.Image:
        image = pil(index)
        image.info["exif"] = exif.tobytes()
        return image

    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert read_torch_dataset(Items(turned), NAMES)[0][0].shape == (3, 40, 50)


def test_items_that_change_are_refused():
    """Boxes that were read once don't fit images that are flipped at random."""
    with pytest.raises(ValueError, match="item 0 of Items isn't the same .* remove random"):
        read_torch_dataset(Items(lambda i: torch.rand(3, 40, 50)), NAMES)


def test_nan_is_a_wrong_box_and_no_change():
    """NaN differs from itself, but the item doesn't."""
    boxes = torch.tensor([[10.0, 5, 30, torch.nan]])
    items = Items(target=lambda i: {**target_of(i), "boxes": boxes})
    with pytest.warns(UserWarning, match=r"has bbox \[10.0, 5.0, 30.0, nan\]; expected 4 finite"):
        assert len(read_torch_dataset(items, NAMES).table.problems) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": lambda i: [{"bbox": [1, 2, 3, 4]}]}, r"is \(Tensor, list\); expected \(image"),
        ({"target": lambda i: {"labels": [1]}}, "without boxes; expected"),
        ({"target": lambda i: {"boxes": [[1, 2, 9, 9]], "labels": []}}, "different lengths"),
        (
            {"target": lambda i: {"boxes": [[1, 2, 9, 9]], "labels": ["cat"]}},
            "item 0 has the label 'cat'; labels must be integers. Map the names",
        ),
        ({"image": lambda i: np.zeros((40, 50, 3))}, "is a ndarray; expected a PIL image"),
    ],
)
def test_other_forms_are_named(changes: dict[str, Any], message: str):
    """The error says what an item has to be."""
    with pytest.raises(ValueError, match=message):
        read_torch_dataset(Items(**changes), NAMES)


def test_boxes_of_another_format_are_refused():
    """tv_tensors know their format."""
    boxes = tv_tensors.BoundingBoxes([[10, 5, 20, 8]], format="XYWH", canvas_size=(40, 50))
    with pytest.raises(ValueError, match="boxes have the format XYWH; expected XYXY"):
        read_torch_dataset(Items(target=lambda i: {"boxes": boxes, "labels": [1]}), NAMES)


def test_tensors_that_are_no_images_are_refused():
    """Normalized pixels and other layouts are named."""
    for image, message in (
        (torch.randn(3, 9, 9), "floats from -.*expected 0 to 1. Remove the normalization"),
        (torch.zeros(9, 9, 3), r"of shape \(9, 9, 3\); expected"),
        (torch.zeros(3, 9, 9, dtype=torch.int64), "tensor of torch.int64; expected uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            as_pil_image(image)
    assert as_pil_image(torch.zeros(1, 4, 6)).mode == "L"


def test_data_sets_without_index_are_refused():
    """An epoch reads images in another order."""

    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[None]:
            return iter(())

    with pytest.raises(TypeError, match="is a Stream; expected one with a length"):
        read_torch_dataset(Stream(), NAMES)
