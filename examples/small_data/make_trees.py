"""Make a data set of tree crowns on aerial photographs, from the PyPI package `deepforest` (MIT).

    pip download deepforest==2.1.0 --no-deps --only-binary :all: --dest deepforest
    python examples/small_data/make_trees.py --wheel deepforest/*.whl --output data/trees

Photographs of Yellowstone, and of two sites in California and Florida, of the National Ecological
Observatory Network, are cut into tiles. The western half of the largest photograph is for training,
everything else for testing, so that no tree is in both. Trees at a border are clipped, and left out
where less than half is on the tile. With `--whole`, only the largest photograph is divided, and
`hf-detr train|evaluate|predict --tiles 400` cut the others.
"""

import argparse
import io
import json
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

LARGE = "2019_YELL_2_528000_4978000_image_crop2"
OTHERS = ("2019_YELL_2_541000_4977000_image_crop", "SOAP_061", "OSBS_029")
MIN_VISIBLE = 0.5
ANY_SIZE = 10**6  # pixels, of a tile that is a whole photograph


def read_photograph(wheel: zipfile.ZipFile, name: str) -> tuple[Image.Image, np.ndarray]:
    """Return a photograph and its boxes (n, 4) as (x0, y0, x1, y1) in pixels."""
    folder = "deepforest/data/"
    image = Image.open(io.BytesIO(wheel.read(f"{folder}{name}.png"))).convert("RGB")
    tree = ElementTree.fromstring(wheel.read(f"{folder}{name}.xml"))
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(box.findtext(key)) for key in corners] for box in tree.iter("bndbox")]
    return image, np.array(boxes).reshape(-1, 4)


def tiles(
    image: Image.Image, boxes: np.ndarray, side: int, x_range: tuple[int, int]
) -> Iterator[tuple[Image.Image, np.ndarray]]:
    """Yield the tiles of a vertical strip of a photograph that have trees, and their boxes."""
    for y in range(0, max(image.height - side // 2, 1), side):
        for x in range(x_range[0], max(x_range[1] - side // 2, x_range[0] + 1), side):
            right, bottom = min(x + side, x_range[1]), min(y + side, image.height)
            low = np.maximum(boxes[:, :2], (x, y))
            high = np.minimum(boxes[:, 2:], (right, bottom))
            inside = (high - low).clip(0).prod(1)
            kept = inside >= MIN_VISIBLE * (boxes[:, 2:] - boxes[:, :2]).prod(1)
            kept &= inside > 0
            if kept.any():
                clipped = np.concatenate([low, high], axis=1)[kept] - (x, y, x, y)
                yield image.crop((x, y, right, bottom)), clipped


def write_split(folder: Path, parts: list[tuple[Image.Image, np.ndarray]]) -> None:
    """Write tiles and their trees as COCO data."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number, (image, boxes) in enumerate(parts, 1):
        name = f"{number:03}.png"
        image.save(folder / "images" / name)
        images.append(
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
        )
        for x0, y0, x1, y1 in boxes.tolist():
            box = [x0, y0, x1 - x0, y1 - y0]
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1}
            annotations.append({**entry, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "tree"}]
    (folder / "annotations.json").write_text(json.dumps(content), encoding="utf-8")
    print(f"{folder}: {len(images)} images, {len(annotations)} trees")


def main() -> None:
    """Read the package and write both splits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="file of the package")
    parser.add_argument("--output", type=Path, required=True, help="folder for the data")
    parser.add_argument("--side", type=int, default=400, help="of the tiles in pixels, default 400")
    parser.add_argument("--whole", action="store_true", help="don't cut the photographs into tiles")
    options = parser.parse_args()
    side = ANY_SIZE if options.whole else options.side
    with zipfile.ZipFile(options.wheel) as wheel:
        image, boxes = read_photograph(wheel, LARGE)
        half = image.width // 2
        write_split(options.output / "train", list(tiles(image, boxes, side, (0, half))))
        test = list(tiles(image, boxes, side, (half, image.width)))
        for name in OTHERS:
            image, boxes = read_photograph(wheel, name)
            test += tiles(image, boxes, side, (0, image.width))
        write_split(options.output / "val", test)


if __name__ == "__main__":
    main()
