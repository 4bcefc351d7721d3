"""Where the tools that write COCO files put the annotations and the images."""

from pathlib import Path

from .remote_paths import RemotePath

# Annotation file and image folder of a split, relative to the data set's folder.
LAYOUTS = (
    ("{split}/annotations.json", "{split}/images"),
    ("{split}/_annotations.coco.json", "{split}"),  # Roboflow
    ("{split}/labels.json", "{split}/data"),  # FiftyOne
    ("annotations/instances_{split}2017.json", "{split}2017"),  # COCO
    ("annotations/instances_{split}2017.json", "images/{split}2017"),
    ("annotations/instances_{split}2014.json", "{split}2014"),
    ("annotations/instances_{split}2014.json", "images/{split}2014"),
    ("annotations/instances_{split}.json", "images/{split}"),  # CVAT
    ("annotations/instances_{split}.json", "{split}"),
    ("annotations/instances_{split}.json", "images"),
    ("lvis_v1_{split}.json", "."),  # LVIS, beside the folders of COCO
    ("annotations/lvis_v1_{split}.json", "."),
    ("annotations/{split}.json", "images/{split}"),
    ("annotations/{split}.json", "{split}"),
    ("annotations/{split}.json", "images"),
    ("{split}.json", "images/{split}"),
    ("{split}.json", "{split}"),
    ("{split}.json", "images"),
    ("{split}/annotations.json", "{split}"),
)
# Data without splits
WHOLE = (
    ("annotations.json", "images"),
    ("annotations.json", "."),
    ("labels.json", "data"),
    ("_annotations.coco.json", "."),
    ("annotations/instances_default.json", "images/default"),
    ("annotations/instances_default.json", "images"),
    ("result.json", "images"),  # Label Studio
)
ONLY_SPLIT = "train"
# Annotation file, image folder and folder of segment maps, in COCO's panoptic format
PANOPTIC = (
    ("{split}/panoptic.json", "{split}/images", "{split}/panoptic"),
    ("annotations/panoptic_{split}2017.json", "{split}2017", "annotations/panoptic_{split}2017"),
    (
        "annotations/panoptic_{split}2017.json",
        "images/{split}2017",
        "annotations/panoptic_{split}2017",
    ),
)


def find_coco(
    folder: Path | RemotePath, split: str
) -> tuple[Path | RemotePath, Path | RemotePath, bool] | None:
    """Find the annotation file and the image folder of a split.

    Returns:
        The file, the folder, and whether the data have no splits, so that they are all of "train";
        None if no layout fits.
    """
    layouts = [(*layout, False) for layout in LAYOUTS]
    if split == ONLY_SPLIT:
        layouts += [(*layout, True) for layout in WHOLE]
    for file, images, is_whole in layouts:
        paths = folder / file.format(split=split), folder / images.format(split=split)
        if paths[0].is_file() and paths[1].is_dir():
            return *paths, is_whole
    return None


def find_panoptic(folder: Path | RemotePath, split: str) -> tuple[Path | RemotePath, ...] | None:
    """Find the annotation file, the image folder and the folder of segment maps of a split."""
    for layout in PANOPTIC:
        file, images, maps = (folder / part.format(split=split) for part in layout)
        if file.is_file() and images.is_dir() and maps.is_dir():
            return file, images, maps
    return None
