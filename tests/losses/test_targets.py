"""Protects the targets: their padding, and the error for every wrong target."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_detr.losses.targets import (
    BOX_TOLERANCE,
    check_sizes,
    check_target_values,
    prepare_targets,
)

CPU = torch.device("cpu")
NUM_LABELS = 3


def target(class_labels: list[int], boxes: list[list[float]]) -> dict[str, Tensor]:
    """One image's label dict, also without objects."""
    return {
        "class_labels": torch.tensor(class_labels, dtype=torch.long),
        "boxes": torch.tensor(boxes).reshape(-1, 4),
    }


def good_target() -> dict[str, Tensor]:
    return target([0, 2], [[0.5, 0.5, 0.2, 0.2], [0.3, 0.4, 0.1, 0.6]])


def test_padding_and_counts() -> None:
    """Protects the padded layout, with an image without objects among the others."""
    one = target([1], [[0.1, 0.2, 0.1, 0.1]])
    targets = prepare_targets([good_target(), target([], []), one], 3, CPU)
    assert targets.counts == (2, 0, 1)
    assert targets.class_labels.tolist() == [[0, 2], [0, 0], [1, 0]]
    assert targets.boxes.shape == (3, 2, 4) and targets.boxes.dtype == torch.float32
    assert torch.equal(targets.boxes[0], good_target()["boxes"])
    assert torch.equal(targets.boxes[2, 0], one["boxes"][0])
    assert not targets.boxes[1].any() and not targets.boxes[2, 1].any()


def test_no_objects_at_all() -> None:
    """Protects batches of empty images, which are ordinary training data."""
    targets = prepare_targets([target([], []), target([], [])], 2, CPU)
    assert targets.counts == (0, 0)
    assert targets.class_labels.shape == (2, 0) and targets.boxes.shape == (2, 0, 4)
    check_target_values(targets.class_labels.numpy(), targets.boxes.numpy(), (0, 0), NUM_LABELS)


def test_dtypes_are_made_alike() -> None:
    """Protects images whose labels are int32 or uint8 and whose boxes aren't float32."""
    mixed = good_target()
    mixed["class_labels"] = mixed["class_labels"].to(torch.int32)
    mixed["boxes"] = mixed["boxes"].double()
    targets = prepare_targets([mixed, good_target()], 2, CPU)
    assert targets.class_labels.dtype == torch.int64 and targets.boxes.dtype == torch.float32


def without(key: str) -> dict[str, Tensor]:
    return {k: v for k, v in good_target().items() if k != key}


def with_value(key: str, value: object) -> dict:
    return {**good_target(), key: value}


# Every case's target is that of image 1
WRONG_STRUCTURE = {
    "no labels": (without("class_labels"), ValueError, r"labels\[1\] has no 'class_labels'"),
    "no boxes": (without("boxes"), ValueError, r"labels\[1\] has no 'boxes', only \['class_lab"),
    "list for labels": (
        with_value("class_labels", [0, 2]),
        TypeError,
        r"labels\[1\]\['class_labels'\] is a list",
    ),
    "array for boxes": (
        with_value("boxes", np.zeros((2, 4))),
        TypeError,
        r"labels\[1\]\['boxes'\] is a ndarray",
    ),
    "float labels": (
        with_value("class_labels", torch.tensor([0.0, 2.0])),
        TypeError,
        r"labels\[1\]\['class_labels'\] is torch.float32",
    ),
    "more labels than boxes": (
        with_value("class_labels", torch.tensor([0, 1, 2])),
        ValueError,
        r"labels\[1\] has class_labels of shape \(3,\) and boxes of shape \(2, 4\)",
    ),
    "five numbers a box": (
        with_value("boxes", torch.zeros(2, 5)),
        ValueError,
        r"labels\[1\].*shape \(2, 5\)",
    ),
    "one flat box": (
        {"class_labels": torch.tensor(1), "boxes": torch.zeros(4)},
        ValueError,
        r"labels\[1\] has class_labels of shape \(\)",
    ),
    "empty boxes without columns": (
        {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0)},
        ValueError,
        r"labels\[1\].*boxes of shape \(0,\)",
    ),
}


@pytest.mark.parametrize("case", WRONG_STRUCTURE)
def test_wrong_structure_in_words(case: str) -> None:
    """Protects that a malformed dict is refused at once, naming image, key and what it is."""
    wrong, error, message = WRONG_STRUCTURE[case]
    with pytest.raises(error, match=message):
        prepare_targets([good_target(), wrong], 2, CPU)


def test_wrong_number_of_dicts() -> None:
    """Protects from targets of other images."""
    with pytest.raises(ValueError, match="labels has 1 dicts for 2 images"):
        prepare_targets([good_target()], 2, CPU)
    with pytest.raises(ValueError, match="labels has 3 dicts for 2 images"):
        prepare_targets([good_target()] * 3, 2, CPU)


def test_not_a_list() -> None:
    """Protects from one dict for the whole batch, and from a bare tensor."""
    with pytest.raises(TypeError, match="labels is a dict; give a list with one dict per image"):
        prepare_targets(good_target(), 2, CPU)
    with pytest.raises(TypeError, match="labels is a Tensor"):
        prepare_targets(torch.zeros(2, 5), 2, CPU)


def test_not_a_list_of_dicts() -> None:
    """Protects from one tensor per image."""
    with pytest.raises(TypeError, match=r"labels\[1\] is a Tensor"):
        prepare_targets([good_target(), torch.zeros(2, 5)], 2, CPU)


def check(labels: list[dict[str, Tensor]]) -> None:
    """Check values as the matcher does."""
    targets = prepare_targets(labels, len(labels), CPU)
    check_target_values(
        targets.class_labels.numpy(), targets.boxes.numpy(), targets.counts, NUM_LABELS
    )


BOX = [0.5, 0.5, 0.2, 0.2]
# Class and box of object 1 in image 1
WRONG_VALUES = {
    "class below": (-1, BOX, r"class -1.*class label outside 0 … 2"),
    "class above": (NUM_LABELS, BOX, r"class 3.*class label outside 0 … 2"),
    "NaN": (0, [0.5, float("nan"), 0.2, 0.2], r"nan.*isn't finite"),
    "infinite": (0, [0.5, 0.5, float("inf"), 0.2], r"inf.*isn't finite"),
    "negative width": (0, [0.5, 0.5, -0.1, 0.2], "negative size"),
    "negative height": (0, [0.5, 0.5, 0.2, -0.1], "negative size"),
    "no width": (0, [0.5, 0.5, 0.0, 0.2], "zero or negative size"),
    "pixels": (0, [320.0, 240.0, 64.0, 64.0], "not in pixels: divide by"),
    "centre outside": (0, [1.2, 0.5, 0.2, 0.2], r"outside \[0, 1\]"),
    "centre below zero": (0, [0.5, -0.1, 0.2, 0.2], r"outside \[0, 1\]"),
    "wider than the image": (0, [0.5, 0.5, 1.1, 0.2], r"outside \[0, 1\]"),
}


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values_in_words(case: str) -> None:
    """Protects that what can't be learned is refused, naming image, object and reason."""
    label, box, message = WRONG_VALUES[case]
    with pytest.raises(ValueError, match=r"labels\[1\], object 1 .*" + message):
        check([good_target(), target([1, label], [BOX, box])])


def test_how_many_are_wrong() -> None:
    """Protects the count of wrong objects, which distinguishes an accident from a wrong format."""
    pixels = target([0, 1], [[10.0, 10.0, 5.0, 5.0], [20.0, 20.0, 5.0, 5.0]])
    with pytest.raises(ValueError, match=r"labels\[0\], object 0.*3 such object\(s\)"):
        check([pixels, target([1, 1], [BOX, [30.0, 30.0, 5.0, 5.0]])])


def test_tolerance_at_the_border() -> None:
    """Protects boxes that leave [0, 1] by rounding, and refuses those just beyond."""
    inside, beyond = 0.9 * BOX_TOLERANCE, 1.1 * BOX_TOLERANCE
    check([target([0, 1], [[1 + inside, -inside, 1.0, 1 + inside], [0.0, 1.0, 1e-6, 1e-6]])])
    for box in ([1 + beyond, 0.5, 0.1, 0.1], [0.5, -beyond, 0.1, 0.1], [0.5, 0.5, 0.1, 1 + beyond]):
        with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
            check([target([0], [box])])


def test_padding_is_not_checked() -> None:
    """Protects from errors about the padding behind an image's objects."""
    class_labels = np.array([[1, 99], [-5, 99]])
    boxes = np.full((2, 2, 4), np.nan)
    boxes[0, 0] = BOX
    check_target_values(class_labels, boxes, (1, 0), NUM_LABELS)
    with pytest.raises(ValueError, match=r"labels\[1\], object 0"):
        check_target_values(class_labels, boxes, (1, 1), NUM_LABELS)


def test_sizes_of_images() -> None:
    """Protects from boxes relative to another area: of transformers' processor, or without mask."""
    padded = torch.ones(2, 64, 96, dtype=torch.long)
    padded[1, 54:] = 0
    padded[1, :, 89:] = 0
    whole, part = ({"size": torch.tensor(size)} for size in ((64, 96), (54, 89)))
    check_sizes([whole, part], (64, 96), padded)
    check_sizes([whole, whole], (64, 96), None)
    # Without sizes there is nothing to compare.
    for others in ([{}, part], [{"size": torch.tensor([54])}, part], [{"size": (5, 5)}] * 2):
        check_sizes(others, (64, 96), None)
    with pytest.raises(ValueError, match=r"labels\[1\]\['size'\] is \(54, 89\).*no pixel_mask"):
        check_sizes([whole, part], (64, 96), None)
    with pytest.raises(ValueError, match=r"is \(64, 96\).*marks \(54, 89\) as real"):
        check_sizes([whole, whole], (64, 96), padded)
