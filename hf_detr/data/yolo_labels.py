"""Label files of YOLO: where they are, and what they look like."""

import codecs
import os
import re


def label_file_of(image: str) -> str:
    """Return the label file of an image: the last `images` in its path replaced by `labels`."""
    *folders, name = os.path.splitext(image)[0].split(os.sep)
    for index in range(len(folders) - 1, 0, -1):
        if folders[index] == "images":
            folders[index] = "labels"
            break
    return os.sep.join([*folders, f"{name}.txt"])


def are_labels(file: str | os.PathLike[str]) -> bool:
    """Whether the first line of a text file is that of an object."""
    with open(file, "rb") as opened:
        words = opened.readline(2000).lstrip(codecs.BOM_UTF8).split()
    return len(words) >= 5 and all(re.fullmatch(rb"[\d.eE+-]+", word) for word in words)
