"""Label files of YOLO: where they are, and what they look like."""

import codecs
import os
import re
from collections.abc import Sequence
from contextlib import suppress


def label_file_of(image: str) -> str:
    """Return the label file of an image: the last `images` in its path replaced by `labels`."""
    *folders, name = os.path.splitext(image)[0].split(os.sep)
    for index in range(len(folders) - 1, 0, -1):
        if folders[index] == "images":
            folders[index] = "labels"
            break
    return os.sep.join([*folders, f"{name}.txt"])


def find_label_files(images: Sequence[str]) -> list[str]:
    """Return the label file of each image as `label_file_of`, with `.TXT` where that is its ending.

    Folders are listed for it, because looking up a file per image takes longer.
    """
    files, spelled = list(map(label_file_of, images)), {}
    for folder in set(map(os.path.dirname, files)):
        with suppress(OSError):  # there can be no labels
            for name in os.listdir(folder):
                stem, ending = os.path.splitext(name)
                if ending != ".txt" and ending.lower() == ".txt":
                    spelled[os.path.join(folder, f"{stem}.txt")] = os.path.join(folder, name)
    spelled = {file: other for file, other in spelled.items() if not os.path.isfile(file)}
    return [spelled.get(file, file) for file in files]


def are_labels(file: str | os.PathLike[str]) -> bool:
    """Whether the first line of a text file is that of an object."""
    with open(file, "rb") as opened:
        words = opened.readline(2000).lstrip(codecs.BOM_UTF8).split()
    return len(words) >= 5 and all(re.fullmatch(rb"[\d.eE+-]+", word) for word in words)
