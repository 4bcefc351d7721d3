"""Find the annotations and the images of a split in a folder."""

from pathlib import Path

from hf_detr.coco_data import read_coco
from hf_detr.detection_data import DetectionDataset

# Names of a split's folder, annotation file and image folder
NAMES = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
LAYOUTS = (
    ("{split}/annotations.json", "{split}/images"),
    ("{split}/_annotations.coco.json", "{split}"),
    ("annotations/instances_{split}2017.json", "{split}2017"),
)


def read_split(folder: Path, split: str, seed: int = 0) -> DetectionDataset:
    """Read "train" or "val" of a folder in one of the usual layouts of COCO's format.

    Raises:
        ValueError: if none of the layouts is there.
    """
    tried = []
    for name in NAMES[split]:
        for annotations, images in LAYOUTS:
            file = folder / annotations.format(split=name)
            tried.append(str(file))
            if file.is_file():
                return read_coco(file, folder / images.format(split=name), seed=seed)
    raise ValueError(f"{folder} has no {split} data; none of these files is there: {tried}.")
