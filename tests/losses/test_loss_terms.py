"""Protects the losses of boxes and masks: by hand, by the original's, and their gradients."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from hf_detr.losses.loss_terms import (
    box_giou_loss,
    box_l1_loss,
    count_loss_normalizers,
    mask_dice_loss,
    mask_focal_loss,
)

# Centre and size: predicted, true; L1 and generalised-IoU loss
PREDICTED = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.2, 0.2], [0.5, 0.5, 0.4, 0.4]])
TRUE = torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.1, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2]])
# second pair: hull 0.6 x 0.2, union 2 x 0.04; third: a quarter of the area, within the other
L1 = torch.tensor([0.0, 0.4, 0.4])
GIOU = torch.tensor([0.0, 1 + (0.12 - 0.08) / 0.12, 1 - 0.25])


def test_l1_by_hand() -> None:
    """Protects the sum over the four coordinates, not their mean."""
    torch.testing.assert_close(box_l1_loss(PREDICTED, TRUE), L1, atol=1e-6, rtol=0)


def test_giou_by_hand() -> None:
    """Protects 1 - GIoU of the same pairs, given as centre and size: 0 is a perfect box."""
    torch.testing.assert_close(box_giou_loss(PREDICTED, TRUE), GIOU, atol=1e-6, rtol=0)


def test_symmetry_and_leading_shape() -> None:
    """Protects pair-by-pair evaluation in any leading shape."""
    torch.manual_seed(0)
    boxes1, boxes2 = torch.rand(2, 3, 4) * 0.5 + 0.2, torch.rand(2, 3, 4) * 0.5 + 0.2
    for loss in (box_l1_loss, box_giou_loss):
        forward = loss(boxes1, boxes2)
        assert forward.shape == (2, 3)
        torch.testing.assert_close(forward, loss(boxes2, boxes1), atol=1e-6, rtol=0)
        torch.testing.assert_close(forward[1], loss(boxes1[1], boxes2[1]), atol=1e-6, rtol=0)


def test_no_pairs() -> None:
    """Protects batches without objects: empty losses whose gradient is empty, not an error."""
    boxes = torch.zeros(0, 4, requires_grad=True)
    for loss in (box_l1_loss, box_giou_loss):
        total = loss(boxes, torch.zeros(0, 4)).sum()
        total.backward()
        assert total == 0 and boxes.grad.shape == (0, 4)


def test_gradients() -> None:
    """Protects derivatives with respect to predictions, against finite differences."""
    torch.manual_seed(0)
    boxes = (torch.rand(6, 4, dtype=torch.float64) * 0.5 + 0.2).requires_grad_()
    true = torch.rand(6, 4, dtype=torch.float64) * 0.5 + 0.2
    for loss in (box_l1_loss, box_giou_loss):
        assert torch.autograd.gradcheck(lambda b, loss=loss: loss(b, true), (boxes,), atol=1e-6)


def test_mask_losses_equal_the_original(reference_dir: Path) -> None:
    """Protects values and gradients of both mask losses, saturated logits among them."""
    case = load_file(reference_dir / "ops" / "mask_losses.safetensors")
    num_boxes = 3.0  # what the recorded losses were divided by
    for name, loss in (("focal_0.25_2", mask_focal_loss), ("dice", mask_dice_loss)):
        logits = case["logits"].clone().requires_grad_()
        total = loss(logits, case["targets"]).sum() / num_boxes
        (grad,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(total[None], case[f"{name}/loss"], atol=1e-10, rtol=0)
        torch.testing.assert_close(grad, case[f"{name}/grad"], atol=1e-10, rtol=0)


def test_mask_losses_by_hand() -> None:
    """Protects what a right, a wrong and an empty mask cost."""
    sure = 40.0
    logits = torch.tensor([[sure, -sure], [-sure, sure], [-sure, -sure]])
    masks = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    dice = torch.tensor([0.0, 1 - 1 / 3, 0.0])
    torch.testing.assert_close(mask_dice_loss(logits, masks), dice, atol=1e-6, rtol=0)
    # a wrong 1 costs 0.25 * 40, a wrong 0 costs 0.75 * 40: averaged over two pixels
    focal = torch.tensor([0.0, 20.0, 0.0])
    torch.testing.assert_close(mask_focal_loss(logits, masks), focal, atol=1e-4, rtol=0)
    nothing = torch.zeros(0, 5)
    assert mask_dice_loss(nothing, nothing).shape == mask_focal_loss(nothing, nothing).shape == (0,)


def test_normalizers_by_hand() -> None:
    """Protects the counts: objects beyond the queries are counted, but take no query."""
    got = count_loss_normalizers([2, 0, 5], num_queries=4, device=torch.device("cpu"))
    assert (got.num_boxes, got.num_matched, got.num_unmatched) == (7, 6, 6)
    assert got.num_boxes.dtype == torch.float32


def test_no_object_counts_as_one() -> None:
    """Protects batches of empty images from a division by zero."""
    got = count_loss_normalizers([0, 0], num_queries=3, device=torch.device("cpu"))
    assert (got.num_boxes, got.num_matched, got.num_unmatched) == (1, 0, 6)
