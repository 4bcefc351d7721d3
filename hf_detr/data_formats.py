"""How a command line names a data set; nothing here needs torch before the data is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from .box_formats import checked_box_format

if TYPE_CHECKING:
    from .detection_data import DetectionDataset


@dataclass
class DataArguments:
    """One data set, for `HfArgumentParser`: give one of coco, voc, yolo and hub."""

    coco: str | None = field(default=None, metadata={"help": "COCO's JSON file."})
    images: str | None = field(default=None, metadata={"help": "COCO's image folder."})
    segments: str | None = field(
        default=None, metadata={"help": "COCO panoptic's PNG folder; makes the data panoptic."}
    )
    voc: str | None = field(
        default=None, metadata={"help": "Pascal VOC's folder, such as VOC2012."}
    )
    yolo: str | None = field(default=None, metadata={"help": "YOLO's data.yaml or its folder."})
    hub: str | None = field(
        default=None, metadata={"help": "A data set of the Hub, or one saved on disk."}
    )
    split: str = field(default="train", metadata={"help": "Of voc, yolo and hub."})
    box_format: str | None = field(
        default=None,
        metadata={"help": "coco_xywh (default of coco), xyxy or cxcywh_normalized; hub needs it."},
    )
    masks: bool = field(default=False, metadata={"help": "Read masks too."})

    def check(self) -> None:
        """Refuse arguments that don't name one data set, before anything is read.

        Raises:
            ValueError: if options are missing or contradict each other.
            FileNotFoundError: if a file or folder doesn't exist.
        """
        given = [name for name in ("coco", "voc", "yolo", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of --coco, --voc, --yolo and --hub; got {given}.")
        if self.coco and not self.images:
            raise ValueError("--coco needs --images, the folder of its images.")
        if self.hub and not self.box_format:
            raise ValueError("--hub needs --box_format: coco_xywh, xyxy or cxcywh_normalized.")
        if self.box_format and (self.voc or self.yolo):
            raise ValueError("--box_format is fixed by VOC and YOLO; leave it out.")
        if self.masks and (self.voc or self.hub):
            raise ValueError("--masks works with --coco and --yolo only.")
        if self.box_format:
            checked_box_format(self.box_format)
        for name in ("coco", "images", "segments", "voc", "yolo"):
            path = getattr(self, name)
            if path and not Path(path).exists():
                raise FileNotFoundError(f"--{name} {path} doesn't exist.")

    def read(self, split: str | None = None, seed: int = 0) -> "DetectionDataset":
        """Read the data set; `split` replaces `self.split`.

        Raises:
            ValueError, FileNotFoundError: if the arguments or the data can't be used.
        """
        from .coco_data import read_coco, read_coco_panoptic
        from .hub_data import load_hf_dataset, read_hf_dataset
        from .voc_data import read_voc
        from .yolo_data import read_yolo

        self.check()
        split = split or self.split
        if self.voc:
            return read_voc(self.voc, split, seed=seed)
        if self.yolo:
            return read_yolo(self.yolo, split, self.masks, seed)
        if self.hub:
            return read_hf_dataset(load_hf_dataset(self.hub, split), self.box_format, seed=seed)
        box_format = self.box_format or "coco_xywh"
        if self.segments:
            return read_coco_panoptic(
                self.coco, self.images, self.segments, box_format, self.masks, seed
            )
        return read_coco(self.coco, self.images, box_format, self.masks, seed)
