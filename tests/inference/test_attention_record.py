"""Tests maps, sampling points and references of attention records in pixels of the image."""

import pytest
import torch

from ..some_attention_records import make_processor, record_attention, some_images, tiny_records


def test_token_of_a_pixel_and_back() -> None:
    """The token at the centre of a token is that token, on all levels of a padded image."""
    _, (_, record) = tiny_records("deformable_detr")
    assert (record.valid_ratios < 1).any()
    start = 0
    for level, (height, width) in enumerate(record.spatial_shapes):
        for token in range(start, start + height * width):
            center = record.token_centers[token]
            if (center < 1).all():
                assert record.token_at((center * record.size_wh).tolist(), level) == token
        start += height * width


def test_token_cells_divide_the_image_without_padding() -> None:
    """The corners of the image are in the first and the last cell without padding."""
    _, (_, record) = tiny_records("detr")
    height, width = record.spatial_shapes[0]
    columns, rows = (record.valid_ratios[0] * torch.tensor([width, height])).round().int().tolist()
    assert columns < width
    assert record.token_at((0, 0)) == 0
    assert record.token_at(record.size_wh.tolist()) == (rows - 1) * width + columns - 1


@pytest.mark.parametrize("variant", ["detr", "conditional_detr", "table-transformer"])
def test_maps_are_attentions_cut_to_the_image(variant: str) -> None:
    """Maps are the attention weights without padding and sum to 1."""
    _, (_, record) = tiny_records(variant)
    height, width = record.spatial_shapes[0]
    maps = record.query_maps([2, 5], layer=1)
    whole = record.cross_attentions[1][:, [2, 5]].view(4, 2, height, width).transpose(0, 1)
    torch.testing.assert_close(maps, whole[..., : maps.shape[-2], : maps.shape[-1]])
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 4), atol=1e-5, rtol=0)
    token = record.token_at((40, 80))
    encoder_map = record.encoder_maps([(40, 80)], layer=0)
    torch.testing.assert_close(
        encoder_map[0].flatten(1),
        record.encoder_attentions[0][:, token]
        .view(4, height, width)[:, : maps.shape[-2], : maps.shape[-1]]
        .flatten(1),
    )


def test_content_and_place_multiply_to_attention() -> None:
    """The logits of content and spatial attention add up to the model's in all layers."""
    _, records = tiny_records("conditional_detr")
    for record in records:
        for layer in range(3):
            content, place = record.content_attentions[layer], record.place_attentions[layer]
            both = (content.log() + place.log()).softmax(-1)
            torch.testing.assert_close(both, record.cross_attentions[layer], atol=1e-5, rtol=1e-4)
            assert not torch.allclose(content, place, atol=1e-4)
    torch.testing.assert_close(
        record.query_maps([1], part="place").sum((-2, -1)), torch.ones(1, 4), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("changes", [{}, {"with_box_refine": True, "two_stage": True}])
def test_sampling_points_lie_around_their_references(changes: dict[str, bool]) -> None:
    """The initial offsets of opposite heads cancel, so their mean is the reference, in pixels.

    This is true only if locations and references are both converted without padding.
    """
    model, (_, record) = tiny_records("deformable_detr", **changes)
    tokens = [0, record.token_at((40, 80), level=1)]
    points = record.encoder_points(tokens)
    assert points.positions_xy.shape == (2, 4, 4, 4, 2)
    expected = (record.token_centers[tokens] * record.size_wh)[:, None, None].expand(2, 4, 4, 2)
    torch.testing.assert_close(points.positions_xy.mean(1), expected, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(points.references, expected[:, 0, 0])
    torch.testing.assert_close(points.weights.sum((-2, -1)), torch.ones(2, 4), atol=1e-5, rtol=0)

    points = record.query_points([3])
    center = points.references[0]
    if changes:
        assert center.shape == (4,)
        center = (center[:2] + center[2:]) / 2
    torch.testing.assert_close(
        points.positions_xy.mean(1), center.expand(1, 4, 4, 2), atol=1e-2, rtol=1e-4
    )


def test_sampling_points_of_an_image_without_padding_are_its_locations() -> None:
    """Without padding a position is the location multiplied by the image's size."""
    model, (_, padded) = tiny_records("deformable_detr")
    [record] = record_attention(model, make_processor("deformable_detr"), some_images()[1])
    assert (record.valid_ratios == 1).all() and (padded.valid_ratios < 1).any()
    points = record.query_points([0, 4], layer=1)
    expected = record.decoder_locations[1][[0, 4]] * torch.tensor([80.0, 160.0])
    torch.testing.assert_close(points.positions_xy, expected)
    torch.testing.assert_close(points.weights, record.cross_attentions[1][[0, 4]])


def test_best_queries() -> None:
    """Queries are sorted by score and limited in number; if none is above, the best are shown."""
    _, (record, _) = tiny_records("detr")
    order = record.scores.argsort(descending=True).tolist()
    assert record.best_queries(0.0) == order and len(order) > 4
    assert record.best_queries(0.0, most=3) == order[:3]
    assert record.best_queries(float(record.scores[order[2]])) == order[:2]
    assert record.best_queries(0.99) == order[:4]
    assert record.best_queries(0.99, most=1) == order[:1]


def test_invalid_arguments() -> None:
    """Errors say what is expected, or what the model has instead."""
    _, (detr, _) = tiny_records("detr")
    _, (deformable, _) = tiny_records("deformable_detr")
    with pytest.raises(
        ValueError, match="Only Deformable DETR has sampling points.*attention maps instead"
    ):
        detr.query_points([0])
    with pytest.raises(ValueError, match="Only Deformable DETR"):
        detr.encoder_points([0])
    with pytest.raises(ValueError, match="Deformable attention.*sampling points instead"):
        deformable.query_maps([0])
    with pytest.raises(ValueError, match="Deformable attention"):
        deformable.encoder_maps([(1, 1)])
    with pytest.raises(ValueError, match="only Conditional DETR"):
        detr.query_maps([0], part="place")
    with pytest.raises(ValueError, match=r"outside the image.*192 x 128"):
        detr.token_at((193, 5))
    with pytest.raises(ValueError, match="level is 4; expected 0 to 3"):
        deformable.token_at((5, 5), level=4)
    with pytest.raises(ValueError, match="layer is 3, but there are 3"):
        detr.query_maps([0], layer=3)
