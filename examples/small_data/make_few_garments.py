"""Make a small data set of few classes from the garments.

    python examples/garments/make_garments.py --output data/garments --images-train 1000 --side 192
    python examples/small_data/make_few_garments.py --data data/garments --images 100 \\
        --output data/few

Other garments stay in the images and aren't annotated. The classes get other names, so that they
are new to the detector that comes with hf_detr, which knows all garments.
"""

import argparse
import json
import shutil
from pathlib import Path

NAMES = {"trouser": "legs", "sneaker": "footwear", "bag": "luggage"}


def copy_split(source: Path, target: Path, num_images: int | None) -> None:
    """Copy the first images of a split, and of their objects those that have a new name."""
    content = json.loads((source / "annotations.json").read_text())
    images = content["images"][:num_images]
    known = {one["id"]: one["name"] for one in content["categories"]}
    kept = {one["id"] for one in images}
    content["images"] = images
    content["annotations"] = [
        one
        for one in content["annotations"]
        if one["image_id"] in kept and known[one["category_id"]] in NAMES
    ]
    content["categories"] = [
        {"id": label, "name": NAMES[name]} for label, name in known.items() if name in NAMES
    ]
    (target / "images").mkdir(parents=True)
    for one in images:
        shutil.copy(source / "images" / one["file_name"], target / "images" / one["file_name"])
    (target / "annotations.json").write_text(json.dumps(content))


def main() -> None:
    """Copy both splits."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of make_garments.py")
    parser.add_argument("--images", type=int, default=100, help="for training, default 100")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    options = parser.parse_args()
    copy_split(options.data / "train", options.output / "train", options.images)
    copy_split(options.data / "test", options.output / "val", None)


if __name__ == "__main__":
    main()
