"""Reader of Pascal VOC data: an XML file per image and a list of images per split."""

import math
import os
import re
import xml.parsers.expat
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder

from tqdm.auto import tqdm

from .annotation_table import Problem, make_table
from .dataset import DetectionDataset
from .image_source import IMAGE_ENDINGS, ImageFolder, check_stays_inside, image_size_hw

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    folder: str | os.PathLike[str],
    split: str = "train",
    class_names: Sequence[str] | None = None,
    keep_difficult: bool = False,
    seed: int = 0,
) -> DetectionDataset:
    """Read Pascal VOC detection data.

    Pixel coordinates start at 1 and corners are inclusive: the box is (xmin - 1, ymin - 1, xmax,
    ymax). The ids of images and objects are their index in the list and in the file.

    Args:
        folder: folder with `Annotations`, `ImageSets/Main` and `JPEGImages`.
        split: name of a list in `ImageSets/Main`, without `.txt`.
        class_names: names of the classes in the order of their labels. Defaults to the sorted names
            in all of `Annotations`, which are the same for all splits.
        keep_difficult: whether to use objects marked as difficult. By default they are crowds:
            excluded from training and ignored in evaluation, as in the VOC devkit.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if the list is missing or empty. Errors in single files are stored in
            `table.problems` and reported by a warning.
    """
    folder = Path(folder)
    stems = _split_stems(folder, split)
    problems: list[Problem] = []
    if class_names is None:
        class_names = _all_class_names(folder / "Annotations")
    labels = {name: label for label, name in enumerate(class_names)}
    paths = (folder / "JPEGImages").iterdir()  # may have other files of annotation tools
    files = {path.stem: path.name for path in paths if path.suffix.lower() in IMAGE_ENDINGS}
    images = ImageFolder(folder / "JPEGImages", [files.get(stem, f"{stem}.jpg") for stem in stems])
    entries, entry_images, sizes_hw = [], [], []
    for index, stem in enumerate(tqdm(stems, desc=f"VOC {split}", unit="file", disable=None)):
        file = folder / "Annotations" / f"{stem}.xml"
        size_hw = None
        try:
            root = parse_xml(file)
            size_hw = _size_hw(root)
            for number, found in enumerate(root.iter("object")):
                name, box, is_difficult = _object(found, file)
                if name not in labels:
                    raise ValueError(
                        f"{file}:{found.get('line')}: {name!r} is not one of the {len(labels)} "
                        "class names"
                    )
                entry = {"id": number, "category_id": labels[name], "bbox": box}
                entries.append({**entry, "iscrowd": is_difficult and not keep_difficult})
                entry_images.append(index)
        except (OSError, ValueError) as error:
            problems.append(Problem("annotation file", index, str(error), True))
        sizes_hw.append(size_hw or image_size_hw(images, index, problems))
    categories = dict(enumerate(class_names))
    ids = range(len(stems))
    table = make_table(categories, ids, sizes_hw, entries, entry_images, "xyxy", problems=problems)
    return DetectionDataset(table, images, seed=seed)


def parse_xml(file: str | os.PathLike[str]) -> Element:
    """Parse an XML file; the attribute `line` of each element is its line number.

    Raises:
        ValueError: if the file isn't XML, or has a document type declaration: its entities could
            read other files or exhaust the memory.
    """
    builder, parser = TreeBuilder(), xml.parsers.expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, {**attributes, "line": str(parser.CurrentLineNumber)})

    def raise_for_doctype(*_: object) -> None:
        raise ValueError(
            f"{file}:{parser.CurrentLineNumber}: document type declarations are not supported, "
            "because they can be harmful; remove it"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, builder.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, raise_for_doctype
    try:
        parser.Parse(Path(file).read_bytes(), True)
    except xml.parsers.expat.ExpatError as error:
        reason = xml.parsers.expat.ErrorString(error.code)
        raise ValueError(f"{file}:{error.lineno}: invalid XML, {reason}") from error
    return builder.close()


def _split_stems(folder: Path, split: str) -> list[str]:
    """Read the names of a split's images, without file endings."""
    lists = folder / "ImageSets" / "Main"
    check_stays_inside([split])
    file = lists / f"{split}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in lists.glob("*.txt"))
        raise ValueError(f"{file} doesn't exist; the splits in {lists} are {known}.")
    lines = [line.strip() for line in file.read_text().splitlines()]
    stems = [_stem(folder, line) for line in lines if line]
    if not stems:
        raise ValueError(f"{file} lists no images.")
    check_stays_inside(stems)
    return stems


def _stem(folder: Path, line: str) -> str:
    """Remove the second column, which the lists of single classes have."""
    without = re.sub(r"\s+-?[01]$", "", line)
    is_name = without != line and (folder / "Annotations" / f"{line}.xml").is_file()
    return line if is_name else without  # names may contain spaces and numbers


def _all_class_names(folder: Path) -> list[str]:
    names = set()
    for file in tqdm(sorted(folder.glob("*.xml")), desc="VOC names", unit="file", disable=None):
        try:
            names |= {
                found.findtext("name", "").strip() for found in parse_xml(file).iter("object")
            }
        except ValueError:
            continue  # reported when its image is read
    return sorted(names - {""})


def _size_hw(root: Element) -> tuple[int, int] | None:
    """Return the height and width; None if the file has none."""
    values = [root.findtext(f"size/{key}", "").strip() for key in ("height", "width")]
    if not all(value.isdecimal() and int(value) for value in values):
        return None
    return int(values[0]), int(values[1])


def _object(found: Element, file: Path) -> tuple[str, list[float], bool]:
    """Return the name, the box (x0, y0, x1, y1) in pixels, and whether it is difficult."""
    name = found.findtext("name", "").strip()
    values = [found.findtext(f"bndbox/{key}", "") for key in CORNERS]
    try:
        corners = [float(value) for value in values]
    except ValueError:
        corners = [math.nan]
    if not all(map(math.isfinite, corners)):
        raise ValueError(
            f"{file}:{found.get('line')}: bndbox has {dict(zip(CORNERS, values, strict=True))}; "
            "expected four finite numbers"
        )
    x0, y0, x1, y1 = corners
    return name, [x0 - 1, y0 - 1, x1, y1], found.findtext("difficult", "0").strip() == "1"
