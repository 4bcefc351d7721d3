"""How a data set is named, on a command line and in Python; nothing here needs torch."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .box_formats import checked_box_format
from .class_names import parsed_names
from .layouts import (
    COCO,
    DATASETS,
    HAVE_OPTION,
    ON_THE_HUB,
    PANOPTIC_COCO,
    DataFiles,
    find_data,
)
from .remote_files import check_folder
from .splits import (
    all_splits,
    check_same_classes,
    checked_split,
    evaluation_split,
    training_splits,
    warn_of_test_split,
)

if TYPE_CHECKING:
    from .dataset import DetectionDataset
    from .reading import OpenedData


@dataclass
class DataArguments:
    """Arguments of a data set for `HfArgumentParser`; in Python `data` can be data sets too.

    See `read_data` for what `data` can be.
    """

    data: str | None = field(
        default=None,
        metadata={
            "help": "Folder of COCO, YOLO, Pascal VOC or Open Images data, or of the library "
            "datasets; YAML file of YOLO; JSON file of COCO with --images; tar files of "
            "WebDataset; a data set's name on the Hub; or the address of data of COCO or "
            "WebDataset."
        },
    )
    images: str | None = field(
        default=None, metadata={"help": "Image folder or address, if --data is a COCO file."}
    )
    segments: str | None = field(
        default=None, metadata={"help": "PNG folder or address, if it is of COCO panoptic."}
    )
    split: str | None = field(
        default=None,
        metadata={
            "help": "Name of a split. Default: train for training; for evaluation the first of "
            "val, valid, validation and test."
        },
    )
    val_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Part of the training images for validation, such as 0.2, of data without "
            "validation split."
        },
    )
    box_format: str | None = field(
        default=None,
        metadata={
            "help": "coco_xywh, xyxy or cxcywh_normalized. Default: that of the format of --data; "
            "of datasets the one that fits all boxes."
        },
    )
    masks: bool = field(default=False, metadata={"help": "Read masks too."})
    names: str | None = field(
        default=None,
        metadata={
            "help": "Class names of a data set of datasets with numbers only: cat,dog for 0 and 1, "
            "or 7=cat,9=dog."
        },
    )
    stream: bool = field(
        default=False,
        metadata={
            "help": "Read rows of a data set of datasets when needed, without downloading it."
        },
    )

    _found = None  # by `check`, for the next reading: folders of many images take long to list

    def check(
        self, training: bool = False, evaluation: bool = False, panoptic: bool = False
    ) -> None:
        """Check the arguments as far as possible before anything is read.

        Args:
            training: whether training and validation data are needed, as by `read_splits`.
            evaluation: whether validation data are needed, as by `read_validation`.
            panoptic: as in `read_splits`.

        Raises:
            ValueError: if options are missing or contradict each other, or if a folder has no known
                layout or not the splits.
            FileNotFoundError: if a file or folder doesn't exist.
        """
        if self.data is None:
            raise ValueError("--data is missing; expected a folder, a file or a name on the Hub.")
        if self.val_fraction is not None and not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; expected 0.2, for example.")
        self.id2label()
        if self.box_format:
            checked_box_format(self.box_format)
        if not isinstance(self.data, str | os.PathLike):
            return
        files = find_data(os.fspath(self.data), self.split, panoptic)
        self._check_options(files, panoptic)
        self._found = replace(self), panoptic, files
        if files.splits is None and files.format in (DATASETS, ON_THE_HUB):
            return  # the splits are known when it is loaded
        if training or self.val_fraction is not None:
            training_splits(files.splits, files.name, self.split, self.val_fraction)
        elif evaluation:
            evaluation_split(files.splits, files.name, self.split)
        elif self.split:
            checked_split(files.splits, self.split, files.name)

    def _check_options(self, files: DataFiles, panoptic: bool) -> None:
        is_json = files.format == COCO and files.splits is None
        if is_json and not self.images:
            raise ValueError(f"{files.name} requires --images, the folder of its images.")
        if (self.images or self.segments) and not is_json:
            raise ValueError(
                f"--images and --segments can only be used with a JSON file of COCO, but --data "
                f"{files.name} is {files.format} data, in which the images are found; omit them."
            )
        if panoptic and not self.segments and files.format != PANOPTIC_COCO:
            raise ValueError(
                f"{files.name} is {files.format} data; panoptic training needs a folder of COCO "
                "panoptic data, or its JSON file with --images and --segments."
            )
        for name, formats in HAVE_OPTION.items():
            if getattr(self, name) not in (None, False) and files.format not in formats:
                raise ValueError(
                    f"--{name.replace('_', '-')} can't be used with {files.format} data, "
                    f"{files.name}; it is for {', '.join(formats)}."
                )
        for name in ("images", "segments"):
            if folder := getattr(self, name):
                check_folder(folder, f"--{name}")

    def id2label(self) -> dict[int, str] | None:
        """Return category id -> name of `names`, None without them.

        Raises:
            ValueError: if `names` can't be parsed.
        """
        if isinstance(self.names, str):
            return parsed_names(self.names)
        is_list = isinstance(self.names, Sequence)
        return dict(enumerate(self.names)) if is_list else self.names

    def read(self, split: str | None = None, seed: int = 0) -> "DetectionDataset":
        """Read the data set; `split` overrides `self.split`, which is "train" by default.

        Raises:
            ValueError, FileNotFoundError: if the arguments or the data are invalid.
        """
        split = split or self.split
        data = self._open(split, seed)
        if split or data.splits is not None:
            split = checked_split(data.splits, split or "train", data.name)
        return data.read([split or "train"])[0]

    def read_validation(self, seed: int = 0) -> "DetectionDataset":
        """Read the data set to evaluate on.

        It is `self.split`, or by default the first of val, valid, validation and test, with a
        warning if it is test; with `self.val_fraction` that part of the training split; or all of
        data without splits.

        Raises:
            ValueError, FileNotFoundError: if the arguments or the data are invalid.
        """
        if self.val_fraction is not None:
            return self.read_splits(seed)[1]
        data = self._open(self.split, seed)
        split = evaluation_split(data.splits, data.name, self.split)
        if not self.split:
            warn_of_test_split(split, data.name)
        return data.read([split])[0]

    def read_splits(
        self, seed: int = 0, panoptic: bool = False
    ) -> tuple["DetectionDataset", "DetectionDataset"]:
        """Read training and validation data.

        The training data are the split `self.split`, by default "train"; the validation data as in
        `read_validation`.

        Args:
            seed: seed of the transform's random numbers and of the division by `val_fraction`.
            panoptic: read COCO panoptic data with masks; of a folder with several annotations, the
                panoptic ones.

        Raises:
            ValueError: as in `read`; or if there are no validation data, or `val_fraction` is given
                and there are some, or the classes of both differ.
        """
        data = self._open(self.split, seed, panoptic)
        train, val = training_splits(data.splits, data.name, self.split, self.val_fraction)
        if val is None:
            return data.read([train])[0].split(self.val_fraction, seed)
        warn_of_test_split(val, data.name)
        read = data.read([train, val])
        check_same_classes(*(one.id2label for one in read))
        return tuple(read)

    def read_all(self, seed: int = 0) -> dict[str, "DetectionDataset"]:
        """Read the training and the validation data that there are, by the names of their splits.

        They are only `self.split` if it is given, and "all" of data without splits. Classes aren't
        compared.

        Raises:
            ValueError, FileNotFoundError: as in `read`.
        """
        if self.val_fraction is not None:
            return dict(zip(("train", "val"), self.read_splits(seed), strict=True))
        data = self._open(self.split, seed)
        if data.splits is None and not self.split:
            return {"all": data.read(["train"])[0]}
        names = all_splits(data.splits or (), data.name, self.split)
        return dict(zip(names, data.read(names), strict=True))

    def _open(self, split: str | None, seed: int, panoptic: bool = False) -> "OpenedData":
        from .reading import ReadingOptions, open_data

        asked, found = replace(self, split=split), self._found
        self._found = None  # the files can be others at another reading
        if not found or found[:2] != (asked, panoptic):
            asked.check(panoptic=panoptic)
            found = asked._found
        given = self.images, self.segments, self.box_format, self.masks
        options = ReadingOptions(*given, self.id2label(), panoptic, self.stream, seed)
        return open_data(self.data, options, split, found and found[2])


def read_data(
    data: Any,
    split: str | None = None,
    *,
    images: str | None = None,
    segments: str | None = None,
    box_format: str | None = None,
    masks: bool = False,
    names: str | Mapping[int, str] | Sequence[str] | None = None,
    seed: int = 0,
) -> "DetectionDataset":
    """Read a data set of any kind.

    Args:
        data: a folder of COCO, COCO panoptic, YOLO, Pascal VOC or Open Images data, or of the
            library `datasets` (of `save_to_disk`, Parquet files, or images with metadata); a YAML
            file of YOLO; a JSON file of COCO; a Parquet file; tar files for `read_webdataset`; a
            name on the Hub; a `DetectionDataset`; a `datasets.Dataset`, or an `IterableDataset`,
            which is read as a `StreamedDataset`; a torch data set for `read_torch_dataset`, or
            `Subset` or `ConcatDataset`; a `datasets.DatasetDict` or dict from split to one of
            these; or a pair of them for "train" and "val".
        split: name of the split, by default "train"; data without splits are read completely.
        images: image folder of a JSON file of COCO, or its address, such as `s3://bucket/photos`.
        segments: PNG folder of a JSON file of COCO's panoptic format, or its address.
        box_format: one of `hf_detr.data.box_formats.BOX_FORMATS`; by default that of the format, or
            for `datasets` the only one that fits all boxes.
        masks: whether targets have masks.
        names: category id -> name, or a list of names, where the data only have numbers.
        seed: seed of the transform's random numbers; a `DetectionDataset` keeps its own.

    Raises:
        ValueError, FileNotFoundError: if the data can't be found or read.
        TypeError: if `data` is something else.
    """
    return DataArguments(data, images, segments, split, None, box_format, masks, names).read(
        seed=seed
    )


def read_splits(
    data: Any,
    split: str | None = None,
    val_fraction: float | None = None,
    *,
    images: str | None = None,
    segments: str | None = None,
    box_format: str | None = None,
    masks: bool = False,
    names: str | Mapping[int, str] | Sequence[str] | None = None,
    panoptic: bool = False,
    seed: int = 0,
) -> tuple["DetectionDataset", "DetectionDataset"]:
    """Read training and validation data of any kind.

    Args:
        data: as in `read_data`.
        split: name of the training split, by default "train".
        val_fraction: part of the training images for validation, of data without validation split.
        images, segments, box_format, masks, names: as in `read_data`.
        panoptic, seed: as in `DataArguments.read_splits`.

    Raises:
        ValueError, FileNotFoundError, TypeError: as in `read_data` and `DataArguments.read_splits`.
    """
    arguments = DataArguments(data, images, segments, split, val_fraction, box_format, masks, names)
    return arguments.read_splits(seed, panoptic)
