"""Tests the mask head: names on disk, values, gradients, and the objects it computes."""

import pytest
import torch
from torch import Tensor
from transformers.models.detr.modeling_detr import DetrMaskHeadSmallConv, DetrMHAttentionMap

from hf_detr.layers.mask_head import AttentionMaps, MaskHead

WIDTH, HEADS, CHANNELS = 128, 8, [24, 16, 12]
# transformers' names in memory, and those on disk, which are ours.
THEIR_NAMES = {"conv1.conv": "lay1", "conv1.norm": "gn1", "conv2.conv": "lay2", "conv2.norm": "gn2"}
for _stage in range(3):
    THEIR_NAMES[f"fpn_stages.{_stage}.fpn_adapter"] = f"adapter{_stage + 1}"
    THEIR_NAMES[f"fpn_stages.{_stage}.refine.conv"] = f"lay{_stage + 3}"
    THEIR_NAMES[f"fpn_stages.{_stage}.refine.norm"] = f"gn{_stage + 3}"
THEIR_NAMES["output_conv"] = "out_lay"


def make_heads(width: int = WIDTH) -> tuple[MaskHead, DetrMaskHeadSmallConv]:
    torch.manual_seed(0)
    ours = MaskHead(width, HEADS, CHANNELS)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    theirs = DetrMaskHeadSmallConv(width + HEADS, CHANNELS, width)
    state = ours.state_dict()
    renamed = {
        f"{their}.{kind}": state[f"{our}.{kind}"]
        for their, our in THEIR_NAMES.items()
        for kind in ("weight", "bias")
    }
    assert len(renamed) == len(state)
    theirs.load_state_dict(renamed)
    return ours, theirs


def make_inputs(
    batch_size: int = 2, num_queries: int = 5, width: int = WIDTH
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Projected map, attention maps (B, Q, M, h, w), finer maps of odd sizes."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch_size, *shape, generator=generator).requires_grad_()

    sizes = [(5, 7), (9, 13), (18, 25)]
    finer = [draw(channels, *size) for channels, size in zip(CHANNELS, sizes, strict=True)]
    return draw(width, 3, 4), draw(num_queries, HEADS, 3, 4), finer


@pytest.mark.parametrize("width", [WIDTH, 64])
def test_masks_equal_transformers(width: int) -> None:
    """Names, masks and all gradients equal those of transformers, down to 4 channels."""
    ours, theirs = make_heads(width)
    features, maps, finer = make_inputs(width=width)
    image = torch.arange(2).repeat_interleave(5)
    got = ours(features, maps.flatten(0, 1), image, finer)
    expected = theirs(features, maps, finer)[:, 0]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-5)
    inputs = [features, maps, *finer]
    got = torch.autograd.grad(got.sin().sum(), [*inputs, ours.lay1.weight, ours.out_lay.bias])
    weights = [theirs.conv1.conv.weight, theirs.output_conv.bias]
    expected = torch.autograd.grad(expected.sin().sum(), [*inputs, *weights])
    for grad, expected_grad in zip(got, expected, strict=True):
        scale = expected_grad.abs().max()
        torch.testing.assert_close(grad / scale, expected_grad / scale, atol=1e-4, rtol=0)


@torch.no_grad()
def test_some_objects_alone() -> None:
    """Masks of chosen objects equal those among all objects."""
    ours, _ = make_heads()
    features, maps, finer = make_inputs()
    every = ours(features, maps.flatten(0, 1), torch.arange(2).repeat_interleave(5), finer)
    image, query = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])
    some = ours(features, maps[image, query], image, finer)
    torch.testing.assert_close(some, every.unflatten(0, (2, 5))[image, query], atol=1e-5, rtol=1e-5)
    nothing = ours(features, maps[image[:0], query[:0]], image[:0], finer)
    assert nothing.shape == (0, 18, 25)


@torch.no_grad()
def test_attention_maps_equal_transformers() -> None:
    """The softmax is over heads and tokens together, without padding."""
    torch.manual_seed(0)
    ours, theirs = AttentionMaps(WIDTH, HEADS), DetrMHAttentionMap(WIDTH, HEADS)
    renamed = {name.replace("linear", "proj"): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    queries, memory = torch.randn(2, 5, WIDTH), torch.randn(2, 12, WIDTH)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    got = ours(queries, memory, mask)
    image = memory.transpose(1, 2).unflatten(-1, (3, 4))
    padding = torch.zeros(2, 1, 1, 12).masked_fill(~mask[:, None, None], -torch.inf)
    expected = theirs(queries, image, padding.unflatten(-1, (3, 4)))
    torch.testing.assert_close(got, expected.flatten(3), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got.sum((2, 3)), torch.ones(2, 5), atol=1e-5, rtol=0)
    assert not got[1, :, :, 7:].any()
    torch.testing.assert_close(ours(queries[:1], memory[:1], None), got[:1], atol=1e-6, rtol=1e-5)


def test_widths_that_do_not_fit() -> None:
    """Unsuitable widths and numbers of maps are refused with the values of the configuration."""
    with pytest.raises(
        ValueError, match=r"multiples of 8, or less than that; d_model 64 and 4 heads give \[68, "
    ):
        MaskHead(64, 4, CHANNELS)
    with pytest.raises(ValueError, match="3 finer feature maps, not 2"):
        MaskHead(WIDTH, HEADS, CHANNELS[:2])
    with pytest.raises(ValueError, match="d_model 10 must be divisible by num_heads 4"):
        AttentionMaps(10, 4)
