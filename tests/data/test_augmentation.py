"""Augmentation: boxes and masks follow the image, the papers' sizes, reproducibility."""

from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from hf_detr import DetrImageProcessor, make_evaluation_transform, make_training_transform
from hf_detr.data.augmentation import PER_OBJECT, crop, flip
from hf_detr.data.dataset import seeded

from ..tiny import random_sample

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def painted_sample(height: int = 96, width: int = 128) -> tuple[tv_tensors.Image, dict]:
    """Make an image of three colored rectangles on black, with their boxes and masks."""
    image, target = random_sample(height, width, masks=True)
    boxes = torch.tensor([[8.0, 10, 50, 40], [60, 6, 120, 60], [20, 50, 44, 90]])
    image, masks = torch.zeros_like(image), torch.zeros(3, height, width, dtype=torch.bool)
    for number, (box, color) in enumerate(zip(boxes.int().tolist(), COLORS, strict=True)):
        inside = slice(box[1], box[3]), slice(box[0], box[2])
        image[:, *inside] = torch.tensor(color, dtype=torch.uint8)[:, None, None]
        masks[number, *inside] = True
    target["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    target["masks"] = tv_tensors.Mask(masks)
    target["area"] = masks.sum((1, 2)).float()
    return tv_tensors.Image(image), target


def bounds(region: Tensor) -> Tensor:
    """Return the corners (x0, y0, x1, y1) of the True pixels of (H, W)."""
    ys, xs = region.nonzero(as_tuple=True)
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


def test_boxes_and_masks_follow_their_pixels() -> None:
    """After any transform, boxes and masks are where the objects are."""
    transform = make_training_transform((64, 80, 96))
    counts = Counter()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = transform(*painted_sample())
        height, width = image.shape[-2:]
        assert target["size"].tolist() == [height, width]
        assert target["orig_size"].tolist() == [96, 128]
        assert target["boxes"].canvas_size == (height, width)
        counts[len(target["boxes"])] += 1
        assert {len(target[key]) for key in PER_OBJECT} == {len(target["boxes"])}
        for label, box, mask in zip(
            target["class_labels"], target["boxes"], target["masks"], strict=True
        ):
            colour = torch.tensor(COLORS[label])[:, None, None]
            seen = ((image.int() - colour).abs() < 100).all(0)
            if box[2] - box[0] < 3 or box[3] - box[1] < 3:
                continue  # a sliver: interpolation changes the color of all its pixels
            torch.testing.assert_close(bounds(seen), box.float(), rtol=0, atol=2)
            torch.testing.assert_close(bounds(mask), box.float(), rtol=0, atol=3)
    # Some of the crops must have dropped objects.
    assert 10 < counts[3] < 40


def test_input_sample_is_not_modified() -> None:
    """Data sets may keep their samples in memory."""
    image, target = painted_sample()
    before = image.clone(), {key: value.clone() for key, value in target.items()}
    for seed in range(6):
        torch.manual_seed(seed)
        make_training_transform((64,))(image, target)
    assert (image == before[0]).all()
    torch.testing.assert_close(target, before[1], rtol=0, atol=0)


def test_sizes_are_the_papers() -> None:
    """The shortest edge is 480, 512, …, 800, the longest edge at most 1333."""
    transform = make_training_transform(crop_probability=0.0)
    shortest = set()
    for seed in range(80):
        torch.manual_seed(seed)
        image, target = transform(*random_sample(60, 80))
        shortest.add(min(image.shape[-2:]))
    assert shortest == set(range(480, 801, 32))
    image, target = transform(*random_sample(50, 150))
    assert max(image.shape[-2:]) <= 1333
    assert transform.sizes[-1].longest_edge == 1333
    assert [size.shortest_edge for size in transform.crop_sizes] == [400, 500, 600]
    assert transform.crop_range == (384, 600)


def test_defaults_are_in_proportion() -> None:
    """`shortest_edges` scales the defaults of all other sizes."""
    transform = make_training_transform((112, 128, 144))
    assert transform.sizes[0].longest_edge == 240
    assert [size.shortest_edge for size in transform.crop_sizes] == [72, 90, 108]
    assert transform.crop_range == (69, 108)


def test_crops_have_sizes_of_the_range_and_any_position() -> None:
    """Edges are within the range, and crops reach both borders."""
    # 120 is a multiple of all edges, so the aspect ratios are exact.
    transform = make_training_transform(
        (120,), 4000, crop_shortest_edges=(40,), crop_range=(2, 4), crop_probability=1.0
    )
    # The brightness of a column encodes its position, and thus that of the crop.
    image, target = random_sample(40, 60, num_objects=0)
    image = tv_tensors.Image(torch.arange(60, dtype=torch.uint8).expand(3, 40, 60) * 4)
    aspects, lefts = set(), set()
    for seed in range(300):
        torch.manual_seed(seed)
        out, _ = transform(image, target)
        aspects.add(Fraction(out.shape[-1], out.shape[-2]))
        lefts.add(round(min(int(out[0, 0, 0]), int(out[0, 0, -1])) / 4))
    assert aspects == {Fraction(w, h) for w in (2, 3, 4) for h in (2, 3, 4)}
    assert min(lefts) == 0 and max(lefts) >= 55 and len(lefts) > 40


def test_crop_is_never_larger_than_the_image() -> None:
    """The shortest edge of an image can be smaller than the minimum edge of a crop."""
    transform = make_training_transform(
        (20,), crop_shortest_edges=(8,), crop_range=(10, 12), crop_probability=1.0
    )
    image, target = transform(*random_sample(8, 30))
    assert min(image.shape[-2:]) >= 1 and target["size"].tolist() == list(image.shape[-2:])


def test_crop_matches_the_official_code() -> None:
    """Boxes and areas are clipped, and objects outside are dropped from all tensors."""
    image, target = painted_sample()
    image, target = crop(image, target, top=20, left=30, height=30, width=40)
    expected = torch.tensor([[0.0, 0, 20, 20], [30, 0, 40, 30]])
    torch.testing.assert_close(target["boxes"].as_subclass(Tensor), expected, rtol=0, atol=0)
    assert target["area"].tolist() == [400, 300]
    assert target["class_labels"].tolist() == [0, 1]
    assert target["masks"].shape == (2, 30, 40) and target["masks"].dtype == torch.bool
    assert target["masks"].sum((1, 2)).tolist() == [400, 300]
    assert target["size"].tolist() == [30, 40] and target["orig_size"].tolist() == [96, 128]
    assert image.shape == (3, 30, 40)


def test_slivers_are_dropped() -> None:
    """Resizing after a crop can't round boxes to empty ones."""
    image, target = painted_sample()
    narrow = torch.tensor([[29.0, 20, 30.0001, 40], [29, 20, 31, 40], [0, 0, 9, 9]])
    target["boxes"] = tv_tensors.BoundingBoxes(narrow, format="XYXY", canvas_size=(96, 128))
    _, cropped = crop(image, target, top=20, left=30, height=30, width=40)
    assert cropped["boxes"].tolist() == [[0, 0, 1, 20]]
    transform = make_training_transform()
    target = {key: value[:1] if key in PER_OBJECT else value for key, value in target.items()}
    del target["masks"]
    whole = tv_tensors.BoundingBoxes([[0.0, 456, 640, 480]], format="XYXY", canvas_size=(480, 640))
    target |= {"boxes": whole, "size": torch.tensor([480, 640])}
    image = tv_tensors.Image(torch.zeros(3, 480, 640, dtype=torch.uint8))
    with seeded(0, 0, 511):  # draws such a crop
        boxes = transform(image, target)[1]["boxes"]
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_crop_may_drop_all_objects() -> None:
    """A crop without objects has empty tensors of the right shapes."""
    image, target = crop(*painted_sample(), top=70, left=60, height=20, width=30)
    assert target["boxes"].shape == (0, 4) and target["masks"].shape == (0, 20, 30)
    assert all(len(target[key]) == 0 for key in PER_OBJECT)
    transform = make_evaluation_transform(40, None)
    assert transform(image, target)[1]["boxes"].shape == (0, 4)


def test_flip_twice_is_the_identity() -> None:
    """Boxes and masks are flipped, and the second flip restores everything."""
    image, target = painted_sample()
    once = flip(image, target)
    assert once[1]["boxes"][0].tolist() == [128 - 50, 10, 128 - 8, 40]
    assert (once[0] == image.flip(-1)).all() and (
        once[1]["masks"] == target["masks"].flip(-1)
    ).all()
    twice = flip(*once)
    assert (twice[0] == image).all()
    torch.testing.assert_close(twice[1], target, rtol=0, atol=0)


def test_probabilities() -> None:
    """Probabilities 0, 1 and 0.5 flip never, always and about half of the time."""
    image, target = painted_sample(64, 64)

    def flipped(probability: float, seed: int) -> bool:
        torch.manual_seed(seed)
        transform = make_training_transform(
            (64,), crop_probability=0.0, flip_probability=probability
        )
        return bool((transform(image, target)[0] != image).any())

    assert not any(flipped(0.0, seed) for seed in range(20))
    assert all(flipped(1.0, seed) for seed in range(20))
    assert 35 < sum(flipped(0.5, seed) for seed in range(100)) < 65


def test_seed_of_torch_makes_samples_reproducible() -> None:
    """The samples depend on torch's seed only."""
    transform = make_training_transform((64, 80, 96))

    def views(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        return [transform(*painted_sample())[0] for _ in range(5)]

    once, again, other = views(3), views(3), views(4)
    assert all(a.shape == b.shape and (a == b).all() for a, b in zip(once, again, strict=True))
    assert any(a.shape != b.shape or (a != b).any() for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize("hw", [(48, 64), (64, 48), (33, 97), (100, 20), (7, 5)])
def test_evaluation_resizes_as_the_processor(hw: tuple[int, int]) -> None:
    """The pixels are exactly those of the processor, and the labels are equal."""
    size = {"shortest_edge": 50, "longest_edge": 83}
    processor = DetrImageProcessor(size=size)
    image, target = random_sample(*hw)
    resized, new_target = make_evaluation_transform(**size)(image, target)
    boxes = target["boxes"].as_subclass(Tensor)
    record = {
        "image_id": 1,
        "annotations": [
            {"bbox": [*box[:2], *(box[2:] - box[:2])], "category_id": label, "area": area}
            for box, label, area in zip(boxes, target["class_labels"], target["area"], strict=True)
        ],
    }
    settings = {"input_data_format": "channels_first", "return_tensors": "pt"}
    expected = processor(image, [record], do_convert_annotations=False, **settings)
    got = processor(resized, do_resize=False, **settings)
    assert torch.equal(got["pixel_values"], expected["pixel_values"])
    for key, value in expected["labels"][0].items():
        torch.testing.assert_close(new_target[key].as_subclass(Tensor), value, rtol=1e-5, atol=1e-4)


def test_composes_with_transforms_of_torchvision() -> None:
    """Other transforms can be used before and after ours."""
    torch.manual_seed(0)
    chain = v2.Compose([v2.ColorJitter(0.4), make_training_transform((64,)), v2.RandomGrayscale(1)])
    image, target = chain(*painted_sample())
    assert (image[0] == image[1]).all()
    assert isinstance(image, tv_tensors.Image) and target["boxes"].canvas_size == image.shape[-2:]


def test_plain_tensors_raise() -> None:
    """torchvision would silently not transform them."""
    image, target = painted_sample()
    transform = make_training_transform((64,))
    with pytest.raises(TypeError, match="expected a tv_tensors.Image"):
        transform(image.as_subclass(Tensor), target)
    for key in ("boxes", "masks"):
        plain = {**target, key: target[key].as_subclass(Tensor)}
        with pytest.raises(TypeError, match=f"target\\['{key}'\\].*expected a tv_tensors"):
            transform(image, plain)
    boxes = tv_tensors.BoundingBoxes(
        target["boxes"].as_subclass(Tensor), format="CXCYWH", canvas_size=(96, 128)
    )
    with pytest.raises(ValueError, match="CXCYWH; expected XYXY"):
        transform(image, {**target, "boxes": boxes})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shortest_edges": ()}, "shortest_edges has"),
        ({"shortest_edges": (64, 0)}, "shortest_edges has"),
        ({"shortest_edges": (64.5,)}, "expected positive integers"),
        ({"longest_edge": -1}, "longest_edge has"),
        ({"crop_range": (20, 10)}, r"\(minimum, maximum\)"),
        ({"crop_shortest_edges": (0,)}, "crop_shortest_edges has"),
        ({"flip_probability": 1.5}, "flip_probability is 1.5"),
    ],
)
def test_invalid_settings_raise(arguments: dict, message: str) -> None:
    """Invalid settings fail at once, not later in a worker."""
    with pytest.raises(ValueError, match=message):
        make_training_transform(**arguments)
