"""Protects box formats, overlaps and the box formula: by hand, and against the original code."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.detr.image_processing_detr import masks_to_boxes as peer_masks_to_boxes

from hf_detr.ops.box_ops import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    boxes_from_deltas,
    generalized_box_iou,
    inverse_sigmoid,
    masks_to_boxes,
    points_from_logits,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"


def all_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes that broadcast to every pair of the two lists."""
    return boxes1[:, None], boxes2[None]


def test_formats_by_hand() -> None:
    """Protects the meaning of both formats: centre and size, and the two corners."""
    cxcywh = torch.tensor([[0.5, 0.4, 0.2, 0.6], [10.0, 20.0, 4.0, 0.0]])
    xyxy = torch.tensor([[0.4, 0.1, 0.6, 0.7], [8.0, 20.0, 12.0, 20.0]])
    torch.testing.assert_close(box_cxcywh_to_xyxy(cxcywh), xyxy, atol=1e-6, rtol=0)
    torch.testing.assert_close(box_xyxy_to_cxcywh(xyxy), cxcywh, atol=1e-6, rtol=0)


def test_formats_round_trip() -> None:
    """Protects that the conversions undo each other, for any leading shape."""
    torch.manual_seed(0)
    boxes = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    for there, back in (
        (box_cxcywh_to_xyxy, box_xyxy_to_cxcywh),
        (box_xyxy_to_cxcywh, box_cxcywh_to_xyxy),
    ):
        torch.testing.assert_close(back(there(boxes)), boxes, atol=1e-14, rtol=0)


def test_area_by_hand() -> None:
    """Protects width times height."""
    boxes = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 1.0, 8.0]])
    torch.testing.assert_close(box_area(boxes), torch.tensor([18.0, 0.0]), atol=0, rtol=0)


# Second box against (0, 0, 2, 2); IoU, union, generalised IoU
OVERLAPS = {
    "same": ((0.0, 0.0, 2.0, 2.0), 1.0, 4.0, 1.0),
    "a quarter inside": ((1.0, 1.0, 3.0, 3.0), 1 / 7, 7.0, 1 / 7 - 2 / 9),
    "nested": ((0.0, 0.0, 1.0, 1.0), 1 / 4, 4.0, 1 / 4),
    "touching": ((2.0, 0.0, 4.0, 2.0), 0.0, 8.0, 0.0),
    "apart sideways": ((3.0, 0.0, 4.0, 2.0), 0.0, 6.0, -2 / 8),
    # both sides of the gap are negative: their product must not count as an intersection
    "apart diagonally": ((3.0, 3.0, 4.0, 4.0), 0.0, 5.0, -11 / 16),
    "without area": ((1.0, 1.0, 1.0, 1.0), 0.0, 4.0, 0.0),
}


@pytest.mark.parametrize("name", OVERLAPS)
def test_overlaps_by_hand(name: str) -> None:
    """Protects IoU, union and generalised IoU in cases computed by hand."""
    other, iou, union, giou = OVERLAPS[name]
    boxes = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor(other)
    expected = torch.tensor([iou, union, giou])
    for first, second in (boxes, boxes[::-1]):
        got = torch.stack([*box_iou(first, second), generalized_box_iou(first, second)])
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_all_pairs_shape() -> None:
    """Protects broadcasting: every pair when asked, element by element otherwise."""
    torch.manual_seed(0)
    boxes1 = box_cxcywh_to_xyxy(torch.rand(3, 4))
    boxes2 = box_cxcywh_to_xyxy(torch.rand(5, 4))
    pairs = generalized_box_iou(*all_pairs(boxes1, boxes2))
    assert pairs.shape == (3, 5)
    torch.testing.assert_close(
        generalized_box_iou(boxes1, boxes2[:3]), pairs[:, :3].diagonal(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "case",
    ["random", "self", "nested_touching_disjoint", "zero_area", "outside_unit_square", "empty"],
)
def test_overlaps_equal_the_original(case: str) -> None:
    """Protects equality with the original's functions, its NaN for 0/0 included."""
    reference = load_file(FIXTURES / "boxes_reference.safetensors")
    boxes = all_pairs(reference[f"{case}/boxes1"], reference[f"{case}/boxes2"])
    iou, union = box_iou(*boxes)
    for name, got in (("iou", iou), ("union", union), ("giou", generalized_box_iou(*boxes))):
        expected = reference[f"{case}/{name}"]
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=0, equal_nan=True)
    torch.testing.assert_close(
        generalized_box_iou(*(corners.float() for corners in boxes)),
        reference[f"{case}/giou_float32"],
        atol=1e-6,
        rtol=0,
        equal_nan=True,
    )


def test_conversion_equals_the_original() -> None:
    """Protects equality with the original's conversions."""
    reference = load_file(FIXTURES / "boxes_reference.safetensors")
    xyxy = box_cxcywh_to_xyxy(reference["convert/cxcywh"])
    torch.testing.assert_close(xyxy, reference["convert/xyxy"], atol=1e-10, rtol=0)
    back = box_xyxy_to_cxcywh(reference["convert/xyxy"])
    torch.testing.assert_close(back, reference["convert/back"], atol=1e-10, rtol=0)


def test_nothing_over_nothing_is_nan() -> None:
    """Protects from an overlap of two boxes without area."""
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert box_iou(point, point)[0].isnan()
    assert generalized_box_iou(point, point).isnan()


def test_gradients_of_generalised_iou() -> None:
    """Protects the gradient that trains boxes, where boxes overlap and where they don't."""
    torch.manual_seed(0)
    boxes1 = box_cxcywh_to_xyxy(torch.rand(6, 4, dtype=torch.float64)).requires_grad_()
    boxes2 = box_cxcywh_to_xyxy(torch.rand(6, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(generalized_box_iou, (boxes1, boxes2), atol=1e-6)
    apart = torch.tensor([0.0, 0.0, 0.1, 0.1], requires_grad=True)
    generalized_box_iou(apart, torch.tensor([0.8, 0.8, 0.9, 0.9])).backward()
    assert apart.grad[2] > 0 and apart.grad[3] > 0  # growing towards the other box helps


def test_points_from_logits() -> None:
    """Protects points of half-precision logits from steps of 1/256 (2.6 pixels of 1333)."""
    logits = torch.linspace(-8, 8, 101)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        given = logits.to(dtype)
        expected = given.double().sigmoid()
        torch.testing.assert_close(points_from_logits(given).double(), expected, atol=1e-7, rtol=0)
    assert points_from_logits(logits.double()).dtype == torch.float64


def test_inverse_sigmoid() -> None:
    """Protects the logit: the original's values, undoing the sigmoid, finite at both ends."""
    reference = load_file(FIXTURES / "position_deformable_reference.safetensors")
    torch.testing.assert_close(
        inverse_sigmoid(reference["inverse_sigmoid/input"]),
        reference["inverse_sigmoid/output"],
        atol=1e-6,
        rtol=0,
    )
    logits = torch.linspace(-8, 8, 17, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(logits.sigmoid()), logits, atol=1e-10, rtol=0)
    ends = inverse_sigmoid(torch.tensor([-0.5, 0.0, 1.0, 1.5]))
    limit = torch.tensor(1e-5).log()
    torch.testing.assert_close(ends, limit * torch.tensor([1, 1, -1, -1]), atol=1e-4, rtol=0)


def test_boxes_from_deltas() -> None:
    """Protects the one box formula: none, a point and a box as the reference."""
    torch.manual_seed(0)
    deltas = torch.randn(2, 3, 4)
    point = torch.rand(2, 3, 2) * 0.8 + 0.1
    box = torch.rand(2, 3, 4) * 0.8 + 0.1
    torch.testing.assert_close(boxes_from_deltas(deltas), deltas.sigmoid(), atol=0, rtol=0)

    moved = boxes_from_deltas(deltas, point)  # the point moves the centre and leaves the size
    centers = torch.sigmoid(deltas[..., :2] + torch.logit(point))
    torch.testing.assert_close(moved[..., :2], centers, atol=1e-6, rtol=0)
    torch.testing.assert_close(moved[..., 2:], deltas[..., 2:].sigmoid(), atol=1e-6, rtol=0)

    refined = boxes_from_deltas(deltas, box)
    torch.testing.assert_close(refined, torch.sigmoid(deltas + torch.logit(box)), atol=1e-6, rtol=0)
    still = boxes_from_deltas(torch.zeros_like(box), box)
    torch.testing.assert_close(still, box, atol=1e-6, rtol=0)


def test_masks_to_boxes_by_hand() -> None:
    """Protects the official convention: from the index of the first pixel to that of the last."""
    masks = torch.zeros(3, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    masks[1, 3, 5] = True
    masks[2, 0, 0] = masks[2, 3, 4] = True
    expected = torch.tensor([[2.0, 1.0, 4.0, 2.0], [5.0, 3.0, 5.0, 3.0], [0.0, 0.0, 4.0, 3.0]])
    torch.testing.assert_close(masks_to_boxes(masks), expected, atol=0, rtol=0)
    assert masks_to_boxes(masks[:0]).shape == (0, 4)


def test_masks_to_boxes_equal_transformers() -> None:
    """Protects equality with the boxes of transformers, on sparse random masks."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((50, 9, 13), (20, 1, 7), (20, 7, 1), (5, 60, 80)):
        masks = torch.rand(shape, generator=generator) < 0.05
        masks[:, -1, -1] |= ~masks.flatten(1).any(1)
        expected = peer_masks_to_boxes(masks)
        torch.testing.assert_close(masks_to_boxes(masks), expected, atol=0, rtol=0)


def test_masks_without_pixels_have_no_box() -> None:
    """Protects from a box around the whole image for an empty mask."""
    masks = torch.ones(3, 4, 6, dtype=torch.bool)
    masks[1] = False
    with pytest.raises(ValueError, match=r"masks \[1\] have no pixel"):
        masks_to_boxes(masks)


def test_boxes_as_large_as_the_image_in_half_precision() -> None:
    """Protects refinement from a size that rounds to 1, which no later layer could shrink."""
    box = torch.full((1, 4), 0.5, dtype=torch.bfloat16)
    for delta in (6.5, -3.0):
        box = boxes_from_deltas(torch.full((1, 4), delta, dtype=torch.bfloat16), box)
    torch.testing.assert_close(box, torch.full((1, 4), 3.5).sigmoid(), atol=1e-5, rtol=0)
