"""COCO panoptic records to target tensors: one object per segment, read from a PNG's colours.

The PNG gives each pixel the id of its segment, as the colour id = R + 256 G + 65536 B. Pixels of id
0, "void", and of ids that the record doesn't list belong to no object.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from .box_ops import masks_to_boxes
from .coco_records import (
    check_entry,
    checked_fields,
    checked_record,
    integer_or_none,
    prepare_target,
)

RECORD = (
    "{'image_id': int, 'file_name': 'x.png', 'segments_info': [{'id': int, 'category_id': int}, "
    "...]}"
)
MOST_ID = 2**24 - 1  # white


def prepare_panoptic_target(
    annotation: Mapping[str, Any],
    image_hw: tuple[int, int],
    masks_path: str | os.PathLike[str],
    return_masks: bool = True,
) -> dict[str, Tensor]:
    """Turn the COCO panoptic record of one image into its target.

    Crowd segments stay, with `iscrowd` 1, as in the official code. Boxes go from the first to the
    last pixel of a segment, also as there, so that a segment one pixel wide or high has a box
    without area; such segments are dropped with a warning. A missing `area` is the number of the
    segment's pixels, a missing `iscrowd` is 0; a `bbox` isn't read.

    Args:
        annotation: `{"image_id" (or "id"): int, "file_name": str, "segments_info": [...]}`; each
            segment has an `id` from 1, as in the PNG, and `category_id`, and may have `area` in
            square pixels and `iscrowd`.
        image_hw: height and width of the upright image in pixels, and so of the PNG.
        masks_path: the folder that holds the PNGs; `file_name` may not lead out of it.
        return_masks: also give `masks`, (n, H, W) bool.

    Returns:
        The target, with boxes (n, 4) as (x0, y0, x1, y1) in pixels.

    Raises:
        ValueError: if a key is missing, a value can't be right, or the PNG can't be read or doesn't
            go with the image and its segments; it names image and segment.
        TypeError: if the record isn't a mapping with a list of mappings.
    """
    image_id, segments = checked_record(annotation, "segments_info", RECORD)
    name = f"image_id {image_id}"
    ids: list[int] = []
    fields = []
    for index, segment in enumerate(segments):
        segment_name = f"{name}, segments_info[{index}]"
        check_entry(segment, ("id", "category_id"), segment_name)
        ids.append(_checked_id(segment, ids, segment_name))
        fields.append(checked_fields(segment, segment_name))

    path = _png_path(annotation.get("file_name"), masks_path, name)
    masks = _segment_masks(_read_ids(path, image_hw, name), ids, f"{name} ({path.name})")
    areas = masks.sum((1, 2)).to(torch.float32)
    # Deviation: the official code and transformers keep boxes without area. The loss refuses them,
    # because IoU can't learn from them.
    reason = "(their segments are one pixel wide or high)"
    target, keep = prepare_target(image_id, image_hw, fields, masks_to_boxes(masks), areas, reason)
    return {**target, "masks": masks[keep]} if return_masks else target


def _checked_id(segment: Mapping[str, Any], earlier: list[int], name: str) -> int:
    segment_id = integer_or_none(segment["id"])
    if segment_id is None or not 1 <= segment_id <= MOST_ID:
        raise ValueError(
            f"{name} has id {segment['id']!r}; give an integer from 1 to {MOST_ID}, the colour "
            "R + 256 G + 65536 B of its pixels. 0 means pixels of nothing."
        )
    if segment_id in earlier:
        raise ValueError(f"{name} has id {segment_id} as an earlier segment has; ids are unique.")
    return segment_id


def _png_path(file_name: Any, masks_path: str | os.PathLike[str], name: str) -> Path:
    """Where the PNG lies, inside `masks_path`; links in that folder are its owner's affair."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise ValueError(f"{name} has file_name {file_name!r}; give that of its PNG: {RECORD}.")
    folder, relative = Path(masks_path), Path(file_name)
    if not folder.is_dir():
        raise ValueError(f"masks_path {str(masks_path)!r} is no folder; give that of the PNGs.")
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(
            f"{name} has file_name {file_name!r}, which leads out of masks_path "
            f"{str(folder)!r}; give a path inside it, without '..'."
        )
    return folder / relative


def _read_ids(path: Path, image_hw: tuple[int, int], name: str) -> Tensor:
    """(H, W) int32, each pixel's id."""
    try:
        pixels = _decoded(path, image_hw)
    except Exception as error:
        raise ValueError(f"{name}: {str(path)!r} can't be used: {error}.") from error
    return torch.from_numpy(pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2])


def _decoded(path: Path, image_hw: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) int32, red, green and blue; errors say what's wrong with the file."""
    height, width = image_hw
    if not path.is_file():
        raise ValueError("there is no such file; file_name is relative to masks_path")
    with PIL.Image.open(path, formats=["PNG"]) as png:
        if png.mode != "RGB":
            raise ValueError(
                f"its mode is {png.mode!r}; give a PNG in 'RGB', where the colour R + 256 G + "
                "65536 B is the id of a segment"
            )
        if png.size != (width, height):
            raise ValueError(
                f"it is {png.width} x {png.height} pixels, but the upright image is {width} x "
                f"{height} (width x height); give the PNG of this image, in its size"
            )
        return np.array(png, dtype=np.int32)


def _segment_masks(pixel_ids: Tensor, ids: list[int], name: str) -> Tensor:
    """(n, H, W) bool of the segments, each with a pixel at least."""
    masks = pixel_ids == torch.tensor(ids, dtype=torch.int32)[:, None, None]
    for index, is_there in enumerate(masks.flatten(1).any(1).tolist()):
        if not is_there:
            raise ValueError(
                f"{name}, segments_info[{index}] has id {ids[index]}, which no pixel of the PNG "
                f"has; its ids are {shortened(pixel_ids.unique().tolist())}. Leave the segment "
                "out, or give the PNG that goes with it."
            )
    return masks
