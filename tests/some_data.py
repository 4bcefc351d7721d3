"""Small data sets on disk, shared by tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]  # COCO's ids have gaps


def write_image(path: Path, height: int = 40, width: int = 50, seed: int = 0) -> Path:
    """Write noise as an image file and return its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(pixels).save(path)
    return path


def entry(number: int, image_id: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a COCO annotation with a box of 20 x 8 pixels at (10, 5)."""
    values = {
        "id": number,
        "image_id": image_id,
        "category_id": 3,
        "bbox": [10, 5, 20, 8],
        "area": 99.5,
        "iscrowd": 0,
        "segmentation": [[10, 5, 30, 5, 30, 13, 10, 13]],
    }
    return {key: value for key, value in {**values, **changes}.items() if value is not None}


def write_coco(
    folder: Path, entries: list[dict], num_images: int = 2, seed: int = 0, **changes: Any
) -> tuple[Path, Path]:
    """Write a COCO data set of images of 40 x 50 pixels; return the arguments of `read_coco`."""
    images = []
    for image_id in range(1, num_images + 1):
        write_image(folder / "images" / f"{image_id}.png", seed=seed + image_id)
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 40, "width": 50})
    content = {"images": images, "annotations": entries, "categories": CATEGORIES, **changes}
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return file, folder / "images"
