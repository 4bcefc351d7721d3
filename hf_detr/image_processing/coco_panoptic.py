"""Conversion of COCO panoptic records to targets: one object per segment of a PNG file.

The color of a pixel in the PNG file is the id of its segment, R + 256 * G + 65536 * B. Pixels with
id 0 ("void") or an id that isn't in the record don't belong to an object.
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

from ..ops.box_ops import masks_to_boxes
from .coco_records import (
    checked_fields,
    checked_record,
    integer_or_none,
    prepare_target,
)

RECORD = (
    "{'image_id': int, 'file_name': 'x.png', 'segments_info': [{'id': int, 'category_id': int}, "
    "...]}"
)
MAX_ID = 2**24 - 1  # white


def prepare_panoptic_target(
    annotation: Mapping[str, Any],
    image_hw: tuple[int, int],
    masks_path: str | os.PathLike[str],
    return_masks: bool = True,
) -> dict[str, Tensor]:
    """Convert the COCO panoptic record of an image to its target.

    As in the official code, crowd segments are kept with `iscrowd` 1, and boxes are from the first
    to the last pixel of a segment, so that segments one pixel wide or high have a box without area.
    They are dropped with a warning. A missing `area` is the number of the segment's pixels, a
    missing `iscrowd` is 0, and `bbox` is ignored.

    Args:
        annotation: `{"image_id" (or "id"): int, "file_name": str, "segments_info": [...]}`; each
            segment has an `id` >= 1, as in the PNG file, and `category_id`, and optionally `area`
            in square pixels and `iscrowd`.
        image_hw: height and width in pixels of the upright image and the PNG file.
        masks_path: folder of the PNG files; `file_name` must be inside of it.
        return_masks: whether the target has `masks`, (n, H, W) bool.

    Returns:
        The target, with boxes (n, 4) as (x0, y0, x1, y1) in pixels.

    Raises:
        ValueError: if a key is missing, a value is invalid, or the PNG file can't be read or
            doesn't match the image and its segments.
        TypeError: if the record isn't a mapping with a list of mappings.
    """
    image_id, segments = checked_record(annotation, "segments_info", RECORD)
    name = f"image_id {image_id}"
    ids: list[int] = []
    fields = []
    for index, segment in enumerate(segments):
        segment_name = f"{name}, segments_info[{index}]"
        fields.append(checked_fields(segment, ("id", "category_id"), segment_name))
        ids.append(_checked_id(segment["id"], ids, segment_name))

    path = _png_path(annotation.get("file_name"), masks_path, name)
    masks = _segment_masks(_read_ids(path, image_hw, name), ids, f"{name} ({path.name})")
    areas = masks.sum((1, 2)).to(torch.float32)
    # Deviation: the official code and transformers keep boxes without area. The loss doesn't accept
    # them, because their IoU has no gradient.
    reason = "(their segments are one pixel wide or high)"
    target, keep = prepare_target(image_id, image_hw, fields, masks_to_boxes(masks), areas, reason)
    return {**target, "masks": masks[keep]} if return_masks else target


def _checked_id(given: Any, earlier: list[int], name: str) -> int:
    segment_id = integer_or_none(given)
    if segment_id is None or not 1 <= segment_id <= MAX_ID:
        raise ValueError(
            f"{name} has id {given!r}; expected an integer from 1 to {MAX_ID}, the color "
            "R + 256 * G + 65536 * B of its pixels."
        )
    if segment_id in earlier:
        raise ValueError(
            f"{name} has the id {segment_id} of an earlier segment; ids must be unique."
        )
    return segment_id


def _png_path(file_name: Any, masks_path: str | os.PathLike[str], name: str) -> Path:
    """Return the path of the PNG file inside `masks_path`, which may contain links."""
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise ValueError(
            f"{name} has file_name {file_name!r}; expected that of its PNG file: {RECORD}."
        )
    folder, relative = Path(masks_path), Path(file_name)
    if not folder.is_dir():
        raise ValueError(
            f"masks_path {str(masks_path)!r} is not a folder; expected that of the PNG files."
        )
    if relative.is_absolute() or ".." in relative.parts:
        raise ValueError(
            f"{name} has file_name {file_name!r}, which is outside of masks_path "
            f"{str(folder)!r}; expected a path inside of it, without '..'."
        )
    return folder / relative


def _read_ids(path: Path, image_hw: tuple[int, int], name: str) -> Tensor:
    """Read the id of each pixel, (H, W) int32."""
    height, width = image_hw
    try:
        if not path.is_file():
            raise ValueError("the file doesn't exist; file_name must be relative to masks_path")
        with PIL.Image.open(path, formats=["PNG"]) as png:
            if png.mode != "RGB":
                raise ValueError(
                    f"its mode is {png.mode!r}; expected 'RGB', where the color R + 256 * G + "
                    "65536 * B is the id of a segment"
                )
            if png.size != (width, height):
                raise ValueError(
                    f"it is {png.width} x {png.height} pixels, but the upright image is {width} x "
                    f"{height} (width x height); expected the PNG file of this image"
                )
            pixels = np.array(png, dtype=np.int32)
    except Exception as error:
        raise ValueError(f"{name}: {str(path)!r} can't be used: {error}.") from error
    return torch.from_numpy(pixels @ np.array([1, 256, 65536], dtype=np.int32))


def _segment_masks(pixel_ids: Tensor, ids: list[int], name: str) -> Tensor:
    """Compute the masks (n, H, W) bool of the segments, which must have pixels."""
    masks = pixel_ids == torch.tensor(ids, dtype=torch.int32)[:, None, None]
    for index, has_pixels in enumerate(masks.flatten(1).any(1).tolist()):
        if not has_pixels:
            raise ValueError(
                f"{name}, segments_info[{index}] has id {ids[index]}, but no pixel; the ids in the "
                f"PNG file are {shortened(pixel_ids.unique().tolist())}. Remove the segment, or "
                "use the PNG file of this record."
            )
    return masks
