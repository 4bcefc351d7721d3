"""Find annotations and images of a split in a folder."""

from pathlib import Path

from hf_detr import DetectionDataset, read_coco, read_coco_panoptic, read_voc, read_yolo
from hf_detr.data.coco_layouts import LAYOUTS, find_coco

SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}
# Annotation file, image folder and folder of segmentation maps, in COCO's panoptic format
PANOPTIC = (
    ("{split}/panoptic.json", "{split}/images", "{split}/panoptic"),
    ("annotations/panoptic_{split}2017.json", "{split}2017", "annotations/panoptic_{split}2017"),
)


def read_splits(
    folder: Path, panoptic: bool = False, seed: int = 0
) -> tuple[DetectionDataset, DetectionDataset]:
    """Read training and validation data.

    Raises:
        ValueError: as for `read_split`, or if their classes differ.
    """
    train, val = (read_split(folder, split, panoptic, seed) for split in ("train", "val"))
    if val.id2label != train.id2label:
        raise ValueError(
            f"the classes of train and val differ: {train.id2label} and {val.id2label}; expected "
            "the same categories in both files."
        )
    return train, val


def read_split(folder: Path, split: str, panoptic: bool = False, seed: int = 0) -> DetectionDataset:
    """Read "train" or "val" of a folder in a layout of COCO, YOLO (`data.yaml`) or Pascal VOC.

    Raises:
        ValueError: if the folder has none of these layouts.
    """
    tried = []
    for name in SPLITS[split]:
        for layout in PANOPTIC if panoptic else LAYOUTS:
            paths = [folder / part.format(split=name) for part in layout]
            tried.append(str(paths[0]))
            if panoptic and paths[0].is_file():
                return read_coco_panoptic(*paths, seed=seed)
        if not panoptic and find_coco(folder, name):
            return read_coco(folder, split=name, seed=seed)
        is_voc_list = (folder / "ImageSets" / "Main" / f"{name}.txt").is_file()
        if not panoptic and (is_voc_list or any((folder / name).glob("*.xml"))):
            return read_voc(folder, name, seed=seed)
    if not panoptic and (folder / "data.yaml").is_file():
        return read_yolo(folder, split, seed=seed)
    formats = "YOLO (data.yaml), Pascal VOC (ImageSets/Main) or COCO"
    raise ValueError(
        f"{folder} has no {split} data; expected a folder of "
        f"{'COCO panoptic data' if panoptic else formats}, with one of {tried}."
    )
