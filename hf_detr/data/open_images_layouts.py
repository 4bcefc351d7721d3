"""Where the files of Open Images are, as its site names them and as FiftyOne downloads them."""

import itertools
from collections.abc import Iterable
from pathlib import Path

# Files of boxes, files of classes and image folders of a split, relative to the data set's folder
BOXES = ("{split}-annotations-bbox.csv", "oidv6-{split}-annotations-bbox.csv")
CLASSES = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
IMAGES = ("{split}", "images/{split}", "images")
LAYOUTS = (
    (BOXES, CLASSES, IMAGES),
    tuple(tuple(f"annotations/{name}" for name in names) for names in (BOXES, CLASSES)) + (IMAGES,),
    (("{split}/labels/detections.csv",), ("{split}/metadata/classes.csv",), ("{split}/data",)),
)


def find_open_images(folder: Path, splits: Iterable[str]) -> dict[str, tuple[Path, Path, Path]]:
    """Find the file of boxes, the file of classes and the image folder of each split."""
    found = {}
    for split, layout in itertools.product(splits, LAYOUTS):
        paths = ([folder / name.format(split=split) for name in names] for names in layout)
        boxes, classes, images = paths
        files = [next(filter(Path.is_file, some), None) for some in (boxes, classes)]
        images = next(filter(Path.is_dir, images), None)
        if all((*files, images)):
            found.setdefault(split, (*files, images))
    return found
