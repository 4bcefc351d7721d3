"""How a command line names a data set; nothing here needs torch before the data is read."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .box_formats import checked_box_format

if TYPE_CHECKING:
    from datasets import Dataset

    from .dataset import DetectionDataset

# Data formats, and the options that only some of them have.
OPTIONS = {
    "coco": ("images", "segments", "box_format", "masks", "split"),
    "voc": ("split",),
    "yolo": ("split", "masks"),
    "hub": ("split", "box_format", "names"),
}
# Splits to evaluate on: the first that there is.
VALIDATION = {
    "coco": ["val", "valid"],
    "voc": ["val"],
    "yolo": ["val"],
    "hub": ["validation", "val", "valid", "test"],
}


@dataclass
class DataArguments:
    """Arguments of a data set for `HfArgumentParser`: one of coco, voc, yolo and hub."""

    coco: str | None = field(default=None, metadata={"help": "COCO JSON file, or its folder."})
    images: str | None = field(default=None, metadata={"help": "Image folder of a --coco file."})
    segments: str | None = field(
        default=None, metadata={"help": "PNG folder of COCO panoptic data."}
    )
    voc: str | None = field(default=None, metadata={"help": "Pascal VOC folder, such as VOC2012."})
    yolo: str | None = field(default=None, metadata={"help": "YOLO data.yaml or its folder."})
    hub: str | None = field(
        default=None,
        metadata={
            "help": "Data set on the Hub, or folder of one: of save_to_disk, Parquet, or images."
        },
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "Split of --voc, --yolo, --hub or a folder of --coco. Default: train; where a "
            "model is evaluated, val; of --hub the first of validation, val, valid and test."
        },
    )
    box_format: str | None = field(
        default=None,
        metadata={"help": "coco_xywh (default for --coco), xyxy or cxcywh_normalized."},
    )
    masks: bool = field(default=False, metadata={"help": "Read masks too."})
    names: str | None = field(
        default=None,
        metadata={"help": "Class names of --hub: cat,dog for 0 and 1, or 7=cat,9=dog."},
    )

    def check(self) -> None:
        """Check that the arguments select one data set, before anything is read.

        Raises:
            ValueError: if options are missing or contradict each other.
            FileNotFoundError: if a file or folder doesn't exist.
        """
        given = [name for name in OPTIONS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"expected one of --coco, --voc, --yolo and --hub, got {given}.")
        is_folder = self.coco is not None and Path(self.coco).is_dir()
        if self.coco and not self.images and not is_folder:
            raise ValueError("--coco requires --images, the folder of its images.")
        if is_folder and (self.images or self.segments):
            raise ValueError(
                f"--coco {self.coco} is a folder, in which the images are found; give a file, or "
                "omit --images and --segments."
            )
        if self.hub and not self.box_format:
            raise ValueError("--hub requires --box_format: coco_xywh, xyxy or cxcywh_normalized.")
        if self.box_format and (self.voc or self.yolo):
            raise ValueError(
                "--box_format can't be used with --voc and --yolo, whose format is fixed."
            )
        for name in dict.fromkeys(option for options in OPTIONS.values() for option in options):
            formats = [f"--{kind}" for kind, options in OPTIONS.items() if name in options]
            if getattr(self, name) not in (None, False) and f"--{given[0]}" not in formats:
                raise ValueError(f"--{name} can only be used with {' and '.join(formats)}.")
        if self.split is not None and self.coco and not is_folder:
            raise ValueError("--split needs a folder of --coco; a file has all of its images.")
        if self.names is not None:
            parsed_names(self.names)
        if self.box_format:
            checked_box_format(self.box_format)
        for name in ("coco", "images", "segments", "voc", "yolo"):
            path = getattr(self, name)
            if path and not Path(path).exists():
                raise FileNotFoundError(f"--{name} {path} doesn't exist.")

    def read(self, split: str | None = None, seed: int = 0) -> "DetectionDataset":
        """Read the data set; `split` overrides `self.split`, which is "train" by default.

        Raises:
            ValueError, FileNotFoundError: if the arguments or the data are invalid.
        """
        return self._read([split or self.split or "train"], seed)

    def read_validation(self, seed: int = 0) -> "DetectionDataset":
        """Read the data set to evaluate on: `self.split`, or by default the validation split.

        Raises:
            ValueError, FileNotFoundError: if the arguments or the data are invalid.
        """
        splits = next((VALIDATION[name] for name in VALIDATION if getattr(self, name)), ())
        return self._read([self.split] if self.split else splits, seed)

    def _read(self, splits: Sequence[str], seed: int) -> "DetectionDataset":
        """Read one of the splits: the first that the data set has."""
        from .coco import read_coco, read_coco_panoptic
        from .coco_layouts import find_coco
        from .hub import read_hf_dataset
        from .voc import read_voc
        from .yolo import read_yolo

        self.check()
        if self.voc:
            return read_voc(self.voc, splits[0], seed=seed)
        if self.yolo:
            return read_yolo(self.yolo, splits[0], self.masks, seed)
        if self.hub:
            names = None if self.names is None else parsed_names(self.names)
            rows = _load_first(self.hub, splits)
            return read_hf_dataset(rows, self.box_format, names, seed=seed)
        box_format = self.box_format or "coco_xywh"
        if self.segments:
            return read_coco_panoptic(
                self.coco, self.images, self.segments, box_format, self.masks, seed
            )
        folder = Path(self.coco)
        found = [split for split in splits if find_coco(folder, split)]
        split = (found or splits)[0]
        return read_coco(self.coco, self.images, box_format, self.masks, seed, split)


def _load_first(name: str, splits: Sequence[str]) -> "Dataset":
    from .hub import load_hf_dataset

    problems = []
    for split in splits:
        try:
            rows = load_hf_dataset(name, split)
        except (ValueError, KeyError) as error:
            problems.append(str(error))
            continue
        if problems:
            warnings.warn(f"{name} has no split {splits[0]!r}; {split!r} is read.", stacklevel=2)
        return rows
    raise ValueError(
        f"The split {' or '.join(splits)} of {name} can't be loaded ({problems[-1]}); give --split."
    )


def parsed_names(text: str) -> dict[int, str]:
    """Parse the names of category ids, `cat,dog` from 0 or `7=cat,9=dog`.

    Raises:
        ValueError: if a name is empty or repeated, or only some have numbers.
    """
    parts = [part.strip() for part in text.split(",")]
    pairs = [part.partition("=") for part in parts]
    are_numbered = {number.isdecimal() and bool(equals) for number, equals, _ in pairs}
    if are_numbered == {True}:
        names = {int(number): name.strip() for number, _, name in pairs}
    else:
        names = dict(enumerate(parts))
    if len(are_numbered) > 1 or not all(names.values()) or len(set(names.values())) < len(parts):
        raise ValueError(
            f"--names is {text!r}; expected different names such as cat,dog or 7=cat,9=dog."
        )
    return names
