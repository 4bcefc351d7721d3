"""What an observation answers: maps, sampling points and references in pixels of the image."""

import pytest
import torch

from .some_observations import make_processor, observe, some_images, tiny_observations


def test_token_of_a_pixel_and_back() -> None:
    """Every real token is found at its own centre, on every level, on a padded image, too."""
    _, (_, seen) = tiny_observations("deformable_detr")
    assert (seen.valid_ratios < 1).any()
    start = 0
    for level, (height, width) in enumerate(seen.spatial_shapes):
        for token in range(start, start + height * width):
            center = seen.token_centers[token]
            if (center < 1).all():
                assert seen.token_at((center * seen.size_wh).tolist(), level) == token
        start += height * width


def test_token_cells_divide_the_image_without_padding() -> None:
    """Corners of the image belong to the first and the last real cell."""
    _, (_, seen) = tiny_observations("detr")
    height, width = seen.spatial_shapes[0]
    columns, rows = (seen.valid_ratios[0] * torch.tensor([width, height])).round().int().tolist()
    assert columns < width
    assert seen.token_at((0, 0)) == 0
    assert seen.token_at(seen.size_wh.tolist()) == (rows - 1) * width + columns - 1


@pytest.mark.parametrize("variant", ["detr", "conditional_detr"])
def test_maps_are_attentions_cut_to_the_image(variant: str) -> None:
    """Maps hold the weights of the forward pass, whose padding has none, so they sum to 1."""
    _, (_, seen) = tiny_observations(variant)
    height, width = seen.spatial_shapes[0]
    maps = seen.query_maps([2, 5], layer=1)
    whole = seen.cross_attentions[1][:, [2, 5]].view(4, 2, height, width).transpose(0, 1)
    torch.testing.assert_close(maps, whole[..., : maps.shape[-2], : maps.shape[-1]])
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(2, 4), atol=1e-5, rtol=0)
    token = seen.token_at((40, 80))
    encoder_map = seen.encoder_maps([(40, 80)], layer=0)
    torch.testing.assert_close(
        encoder_map[0].flatten(1),
        seen.encoder_attentions[0][:, token]
        .view(4, height, width)[:, : maps.shape[-2], : maps.shape[-1]]
        .flatten(1),
    )


def test_content_and_place_multiply_to_attention() -> None:
    """Logits of content and of place add up to the model's own, in every layer and head."""
    _, seen_images = tiny_observations("conditional_detr")
    for seen in seen_images:
        for layer in range(3):
            content, place = seen.content_attentions[layer], seen.place_attentions[layer]
            both = (content.log() + place.log()).softmax(-1)
            torch.testing.assert_close(both, seen.cross_attentions[layer], atol=1e-5, rtol=1e-4)
            assert not torch.allclose(content, place, atol=1e-4)
    torch.testing.assert_close(
        seen.query_maps([1], part="place").sum((-2, -1)), torch.ones(1, 4), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("changes", [{}, {"with_box_refine": True, "two_stage": True}])
def test_sampling_points_lie_around_their_references(changes: dict[str, bool]) -> None:
    """Fresh offsets form a ring: in pixels, the mean of a head and its opposite is the reference.

    That holds only if locations and references are converted alike, padding taken off.
    """
    model, (_, seen) = tiny_observations("deformable_detr", **changes)
    tokens = [0, seen.token_at((40, 80), level=1)]
    points = seen.encoder_points(tokens)
    assert points.positions_xy.shape == (2, 4, 4, 4, 2)
    expected = (seen.token_centers[tokens] * seen.size_wh)[:, None, None].expand(2, 4, 4, 2)
    torch.testing.assert_close(points.positions_xy.mean(1), expected, atol=1e-2, rtol=1e-4)
    torch.testing.assert_close(points.references, expected[:, 0, 0])
    torch.testing.assert_close(points.weights.sum((-2, -1)), torch.ones(2, 4), atol=1e-5, rtol=0)

    points = seen.query_points([3])
    center = points.references[0]
    if changes:
        assert center.shape == (4,)
        center = (center[:2] + center[2:]) / 2
    torch.testing.assert_close(
        points.positions_xy.mean(1), center.expand(1, 4, 4, 2), atol=1e-2, rtol=1e-4
    )


def test_sampling_points_of_an_image_without_padding_are_its_locations() -> None:
    """Without padding a position is the location times the image's size."""
    model, (_, padded) = tiny_observations("deformable_detr")
    [seen] = observe(model, make_processor("deformable_detr"), some_images()[1])
    assert (seen.valid_ratios == 1).all() and (padded.valid_ratios < 1).any()
    points = seen.query_points([0, 4], layer=1)
    expected = seen.decoder_locations[1][[0, 4]] * torch.tensor([80.0, 160.0])
    torch.testing.assert_close(points.positions_xy, expected)
    torch.testing.assert_close(points.weights, seen.cross_attentions[1][[0, 4]])


def test_best_queries() -> None:
    """Best first, above the threshold, at most so many; none is an error with a way out."""
    _, (seen, _) = tiny_observations("detr")
    best = seen.best_queries(0.0, most=3)
    assert seen.scores[best].tolist() == seen.scores.sort(descending=True).values[:3].tolist()
    with pytest.raises(ValueError, match="no object query scores above 0.99.*lower threshold"):
        seen.best_queries(0.99)


def test_wrong_use_is_refused_in_words() -> None:
    """Each error says what the model has instead, or what is expected."""
    _, (detr, _) = tiny_observations("detr")
    _, (deformable, _) = tiny_observations("deformable_detr")
    with pytest.raises(ValueError, match="no sampling points.*attention maps instead"):
        detr.query_points([0])
    with pytest.raises(ValueError, match="no sampling points"):
        detr.encoder_points([0])
    with pytest.raises(ValueError, match="is deformable.*sampling points instead"):
        deformable.query_maps([0])
    with pytest.raises(ValueError, match="is deformable"):
        deformable.encoder_maps([(1, 1)])
    with pytest.raises(ValueError, match="only Conditional DETR"):
        detr.query_maps([0], part="place")
    with pytest.raises(ValueError, match=r"outside the image.*192 x 128"):
        detr.token_at((193, 5))
    with pytest.raises(ValueError, match="levels 0 to 3"):
        deformable.token_at((5, 5), level=4)
    with pytest.raises(ValueError, match="layer is 3; there are 3"):
        detr.query_maps([0], layer=3)
