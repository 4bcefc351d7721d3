"""The papers' augmentation: random flip, random crop and resize to a random size.

A sample is `(image, target)`: an image `tv_tensors.Image` (3, H, W) uint8 and a target as in
`coco_targets.py`, whose `boxes` are `tv_tensors.BoundingBoxes` (x0, y0, x1, y1) in pixels and whose
`masks`, if present, are `tv_tensors.Mask` (n, H, W). These transforms can be combined with those
of torchvision, such as `v2.ColorJitter`, in a `v2.Compose`.

All random numbers come from torch's global generator; seed it for reproducible samples.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import SizeDict

from ..image_processing.coco_records import min_box_size
from ..image_processing.coco_targets import resize_target
from ..image_processing.image_canvas import stack_images
from ..image_processing.image_settings import (
    DEFAULT_LONGEST_EDGE,
    DEFAULT_SHORTEST_EDGE,
    resized_hw,
)

Sample = tuple[tv_tensors.Image, dict[str, Tensor]]

PAPER_SHORTEST_EDGES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
# The papers' crop sizes as fractions of the largest shortest edge, 800: 400, 500 and 600, and crops
# of 384 to 600 pixels.
CROP_SHORTEST_EDGES = (0.5, 0.625, 0.75)
CROP_RANGE = (0.48, 0.75)
PER_OBJECT = ("class_labels", "boxes", "area", "iscrowd", "masks")


def make_training_transform(
    shortest_edges: Sequence[int] = PAPER_SHORTEST_EDGES,
    longest_edge: int | None = None,
    crop_shortest_edges: Sequence[int] | None = None,
    crop_range: tuple[int, int] | None = None,
    crop_probability: float = 0.5,
    flip_probability: float = 0.5,
) -> "SampleTransform":
    """Make the papers' augmentation. Use smaller `shortest_edges` for small images.

    Args:
        shortest_edges: sizes in pixels of the shortest edge; one is drawn for each image.
        longest_edge: maximum size of the longest edge in pixels. Defaults to the papers' 1333 for
            800, in proportion to the largest of `shortest_edges`.
        crop_shortest_edges: sizes of the shortest edge before cropping; one is drawn. Defaults to
            the papers' 400, 500 and 600 for 800, in proportion.
        crop_range: minimum and maximum edge of a crop in pixels. Defaults to the papers' 384 and
            600 for 800, in proportion.
        crop_probability: probability of cropping.
        flip_probability: probability of a horizontal flip; use 0 if left and right have a meaning.

    Raises:
        ValueError: if a size or a probability is invalid.
    """
    _check_edges(shortest_edges, "shortest_edges")
    largest = max(shortest_edges)
    if longest_edge is None:
        longest_edge = round(largest * DEFAULT_LONGEST_EDGE / DEFAULT_SHORTEST_EDGE)
    if crop_shortest_edges is None:
        crop_shortest_edges = _fractions_of(largest, CROP_SHORTEST_EDGES)
    if crop_range is None:
        crop_range = _fractions_of(largest, CROP_RANGE)
    _check_edges([longest_edge], "longest_edge")
    _check_edges(crop_shortest_edges, "crop_shortest_edges")
    _check_edges(crop_range, "crop_range")
    if len(crop_range) != 2 or crop_range[0] > crop_range[1]:
        raise ValueError(f"crop_range is {crop_range!r}; expected (minimum, maximum) in pixels.")
    for name, value in (("crop", crop_probability), ("flip", flip_probability)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}_probability is {value!r}; expected a number from 0 to 1.")
    return SampleTransform(
        sizes=[SizeDict(shortest_edge=edge, longest_edge=longest_edge) for edge in shortest_edges],
        crop_sizes=[SizeDict(shortest_edge=edge) for edge in crop_shortest_edges],
        crop_range=tuple(crop_range),
        crop_probability=crop_probability,
        flip_probability=flip_probability,
    )


def make_evaluation_transform(
    shortest_edge: int = DEFAULT_SHORTEST_EDGE, longest_edge: int | None = DEFAULT_LONGEST_EDGE
) -> "SampleTransform":
    """Make a transform that resizes exactly as an image processor of the same size.

    Args:
        shortest_edge, longest_edge: in pixels; a longest edge of None is no limit.

    Raises:
        ValueError: if a size is invalid.
    """
    _check_edges([shortest_edge], "shortest_edge")
    if longest_edge is not None:
        _check_edges([longest_edge], "longest_edge")
    return SampleTransform([SizeDict(shortest_edge=shortest_edge, longest_edge=longest_edge)])


@dataclass(frozen=True)
class SampleTransform:
    """Flips, crops and resizes samples; sizes are drawn from `sizes` and `crop_sizes`."""

    sizes: Sequence[SizeDict]
    crop_sizes: Sequence[SizeDict] = ()
    crop_range: tuple[int, int] = (1, 1)
    crop_probability: float = 0.0
    flip_probability: float = 0.0

    def __call__(self, image: tv_tensors.Image, target: dict[str, Tensor]) -> Sample:
        """Return a transformed copy of a sample."""
        _check_sample(image, target)
        if _chance(self.flip_probability):
            image, target = flip(image, target)
        if _chance(self.crop_probability):
            image, target = _resize_to_one_of(self.crop_sizes, image, target)
            image, target = crop(image, target, *_draw_window(image.shape[-2:], self.crop_range))
        return _resize_to_one_of(self.sizes, image, target)


def flip(image: tv_tensors.Image, target: dict[str, Tensor]) -> Sample:
    """Flip a sample horizontally."""
    flipped = {
        key: F.horizontal_flip(value) if isinstance(value, tv_tensors.TVTensor) else value
        for key, value in target.items()
    }
    return F.horizontal_flip(image), flipped


def resize(image: tv_tensors.Image, target: dict[str, Tensor], size_hw: tuple[int, int]) -> Sample:
    """Resize a sample to (height, width), with the same pixels as the image processor."""
    size_before = torch.tensor(image.shape[-2:], dtype=torch.int64)
    (pixels,) = F.resize(
        stack_images([image.as_subclass(Tensor)]),
        list(size_hw),
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    resized = resize_target({**target, "size": size_before}, size_hw)
    resized["boxes"] = _as_boxes(resized["boxes"], size_hw)
    if "masks" in resized:
        resized["masks"] = tv_tensors.Mask(resized["masks"])
    return tv_tensors.Image(pixels), resized


def crop(
    image: tv_tensors.Image, target: dict[str, Tensor], top: int, left: int, height: int, width: int
) -> Sample:
    """Crop a sample; all arguments in pixels.

    Boxes are clipped to the crop, and objects with an empty or nearly empty box are dropped,
    possibly all of them. As in the official code, `area` becomes the area of the clipped box.
    """
    window = (top, left, height, width)
    boxes = F.crop(target["boxes"], *window).as_subclass(Tensor)
    keep = (boxes[:, 2:] - boxes[:, :2] > float(min_box_size((height, width)))).all(-1)
    cropped = {**target, "area": (boxes[:, 2:] - boxes[:, :2]).prod(-1)}
    if "masks" in target:
        cropped["masks"] = F.crop(target["masks"], *window).as_subclass(Tensor)
    cropped = {key: value[keep] if key in PER_OBJECT else value for key, value in cropped.items()}
    cropped["boxes"] = _as_boxes(boxes[keep], (height, width))
    if "masks" in target:
        cropped["masks"] = tv_tensors.Mask(cropped["masks"])
    cropped["size"] = torch.tensor([height, width], dtype=torch.int64)
    return F.crop(image, *window), cropped


def _resize_to_one_of(
    sizes: Sequence[SizeDict], image: tv_tensors.Image, target: dict[str, Tensor]
) -> Sample:
    size = sizes[_draw(0, len(sizes) - 1)]
    return resize(image, target, resized_hw(tuple(image.shape[-2:]), size))


def _as_boxes(boxes_xyxy: Tensor, canvas_hw: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes_xyxy, format="XYXY", canvas_size=tuple(canvas_hw))


def _draw_window(image_hw: Sequence[int], crop_range: tuple[int, int]) -> tuple[int, int, int, int]:
    """Draw the top, left, height and width of a crop in pixels."""
    height, width = (_draw(min(crop_range[0], edge), min(crop_range[1], edge)) for edge in image_hw)
    return _draw(0, image_hw[0] - height), _draw(0, image_hw[1] - width), height, width


def _draw(low: int, high: int) -> int:
    """Draw an integer from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, ()))


def _chance(probability: float) -> bool:
    return bool(torch.rand(()) < probability)


def _fractions_of(edge: int, fractions: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(max(round(fraction * edge), 1) for fraction in fractions)


def _check_edges(edges: Sequence[int], name: str) -> None:
    if len(edges) == 0 or any(not isinstance(edge, int) or edge < 1 for edge in edges):
        raise ValueError(f"{name} has {list(edges)}; expected positive integers, in pixels.")


def _check_sample(image: tv_tensors.Image, target: dict[str, Tensor]) -> None:
    """Check the types; torchvision doesn't transform plain tensors along with the image.

    Raises:
        TypeError: if the image, its boxes or masks aren't tv_tensors.
        ValueError: if the boxes aren't corners.
    """
    for name, value, kind in (
        ("the image", image, tv_tensors.Image),
        ("target['boxes']", target["boxes"], tv_tensors.BoundingBoxes),
        ("target['masks']", target.get("masks"), tv_tensors.Mask),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(
                f"{name} is a {type(value).__name__}; expected a tv_tensors.{kind.__name__}, "
                "which torchvision transforms with the others."
            )
    if target["boxes"].format != tv_tensors.BoundingBoxFormat.XYXY:
        raise ValueError(
            f"The boxes have the format {target['boxes'].format.name}; expected XYXY, in pixels."
        )


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed torch's CPU generator by `numbers`, and restore its state afterwards."""
    before = torch.get_rng_state()
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    # Not torch.manual_seed, which also queues a seed for CUDA, with a stack trace, per call.
    torch.default_generator.manual_seed(int(seed))
    try:
        yield
    finally:
        torch.set_rng_state(before)
