"""What detectors share whose attention samples several feature levels; more runs per variant."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from hf_detr.layers.feature_pyramid import build_pyramid
from hf_detr.layers.position_encoding import SinePositionEncoding
from hf_detr.models.sampled_attention import anchor_boxes, make_projections

from ..tiny import padded_batch, some_labels, tiny_config, tiny_detector


def test_anchor_boxes() -> None:
    """A box is at its token's centre, twice as large on the next level, in the real image alone."""
    mask = torch.zeros(1, 16, 32)
    mask[:, :8, :16] = 1  # the upper left quarter
    maps = [torch.zeros(1, 4, 8, 16), torch.zeros(1, 4, 4, 8)]
    _, _, pyramid = build_pyramid(maps, mask, SinePositionEncoding(4))
    logits, valid = anchor_boxes(pyramid)
    assert valid[..., 0].tolist() == pyramid.mask.tolist()
    assert logits[~valid.expand_as(logits)].isinf().all()

    def expected(rows: int, columns: int, size: float) -> Tensor:
        centers = [
            ((x + 0.5) / columns, (y + 0.5) / rows) for y in range(rows) for x in range(columns)
        ]
        return torch.tensor([[*center, size, size] for center in centers])

    boxes = logits[valid[..., 0]].sigmoid()
    assert_close(boxes, torch.cat([expected(4, 8, 0.05), expected(2, 4, 0.1)]))


@pytest.mark.parametrize("variant", ["deformable_detr", "dino_detr"])
def test_padding_takes_no_queries(variant: str) -> None:
    """Protects models that have seen little padding, where an empty token may score high."""
    stages = {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 7}
    model = tiny_detector(variant, **({} if variant == "dino_detr" else stages))
    proposals = model.model.proposals if variant == "dino_detr" else model.model
    heads = proposals.class_embed if variant == "dino_detr" else model.class_embed[-1]
    torch.nn.init.normal_(heads.weight)
    with torch.no_grad():  # after its norm, an empty token is this bias
        proposals.enc_output.bias.copy_(1e-3 * heads.weight[0])
        proposals.enc_output.weight.mul_(100)
    inputs = padded_batch()
    references = model.model(*inputs).reference_points[0]
    assert (references < 1).any(-1).all()  # infinite boxes end at 1
    assert model(*inputs, labels=some_labels()).loss.isfinite()


@pytest.mark.parametrize("num_maps", [1, 3])
def test_projections_end_with_strided_levels(num_maps: int) -> None:
    """Levels that the backbone doesn't have are made of its last map, each half as large."""
    config = tiny_config("deformable_detr", num_feature_levels=4)
    projections = make_projections([8, 16, 32][:num_maps], config)
    strides = [projection[0].stride[0] for projection in projections]
    assert strides == [1] * num_maps + [2] * (4 - num_maps)
    assert projections[num_maps][0].in_channels == [8, 16, 32][num_maps - 1]
