"""Reader of Pascal VOC data: an XML file per image and a list of images per split."""

import math
import os
import re
import xml.parsers.expat
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from xml.etree.ElementTree import Element, TreeBuilder

from tqdm.auto import tqdm

from ..wording import some_of
from .annotation_table import AnnotationTable, Problem, make_table
from .dataset import DetectionDataset
from .file_names import check_stays_inside, files_below, image_endings, read_lines
from .image_source import ImageFolder, fill_in_sizes_hw, turned_size_hw
from .table_cache import Content, read_mapped

ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images")
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
        folder: folder with `Annotations`, `ImageSets/Main` and `JPEGImages`. Other tools' layouts
            are read too: a folder per split with the XML files beside their images, and data
            without splits, in folders `annotations` and `images` or in one folder.
        split: name of a list in `ImageSets/Main`, without `.txt`, or of a split's folder. Data
            without splits only have the split "train", of all images.
        class_names: names of the classes in the order of their labels. Defaults to the sorted names
            in all of `Annotations`, which are the same for all splits.
        keep_difficult: whether to use objects marked as difficult. By default they are crowds:
            excluded from training and ignored in evaluation, as in the VOC devkit.
        seed: seed of the transform's random numbers.

    Raises:
        ValueError: if the list is missing or empty. Errors in single files are stored in
            `table.problems` and reported by a warning.
    """
    problems: list[Problem] = []
    layout = _find_layout(Path(folder), split, problems)
    used = dict.fromkeys(layout.file(stem) for stem in layout.stems)
    all_files = layout.all_files() if class_names is None else []
    used |= dict.fromkeys(all_files)
    named_images = _image_files(layout.images)
    unnamed = _unnamed_images(layout, Path(folder), named_images)
    image_files = [layout.image(name) for names in named_images.values() for name in names]

    def read() -> Content:
        names = _all_class_names(all_files) if class_names is None else class_names
        given = layout, split, names, keep_difficult, named_images, unnamed, problems
        return *_read_annotations(*given), ()

    options = repr(("voc", split, class_names, keep_difficult, layout.stems, problems))
    table, images = read_mapped([*used], layout.images, options, read, image_files)
    return DetectionDataset(table, images, seed=seed)


def _read_annotations(
    layout: "_Layout",
    split: str,
    class_names: Sequence[str],
    keep_difficult: bool,
    named_images: Mapping[str, Sequence[str]],
    unnamed: Sequence[str],
    problems: list[Problem],
) -> tuple[AnnotationTable, ImageFolder]:
    """Read the annotation file of each image."""
    labels = {name: label for label, name in enumerate(class_names)}
    image_names, entries, entry_images, sizes_hw = [], [], [], []
    bar = tqdm(layout.stems, desc=f"VOC {split}", unit="file", disable=None)
    for index, stem in enumerate(bar):
        file = layout.file(stem)
        image_names.append(named_images.get(stem, [f"{stem}.jpg"])[0])
        sizes_hw.append((None, None))
        try:
            root = parse_xml(file)
            sizes_hw[-1] = _size_hw(root)
            if len(named_images.get(stem, [])) > 1:
                image_names[-1] = _named_image(root, named_images[stem], file)
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
    images = ImageFolder(layout.images, image_names)
    problems += images.notes
    _note_unread_images(images, unnamed, problems)
    table = make_table(
        dict(enumerate(class_names)),
        range(len(image_names)),
        fill_in_sizes_hw(sizes_hw, images, problems),
        entries,
        entry_images,
        "xyxy",
        problems=problems,
        turned_hw=partial(turned_size_hw, images),
        has_fixed_format=True,
    )
    return table, images


@dataclass(frozen=True)
class _Layout:
    """Where a split's files are; `stems` are their names without ending."""

    annotations: Path
    images: Path
    stems: list[str]
    all_annotations: Path  # of all splits
    xml_names: Mapping[str, str]  # of the files in `annotations`, by their stems
    has_lists: bool  # in `ImageSets`, of the images to read

    def file(self, stem: str) -> str:
        return os.path.join(self.annotations, self.xml_names.get(stem, f"{stem}.xml"))

    def all_files(self) -> list[str]:
        is_known = self.all_annotations == self.annotations
        names = self.xml_names if is_known else _xml_names(self.all_annotations)
        return [os.path.join(self.all_annotations, name) for name in names.values()]

    def image(self, name: str) -> str:
        return os.path.join(self.images, name)


def _find_layout(folder: Path, split: str, problems: list[Problem]) -> _Layout:
    check_stays_inside([split])
    if (folder / "ImageSets" / "Main").is_dir():
        annotations, images = folder / "Annotations", _subfolder(folder, IMAGE_FOLDERS)
        xml_names = _xml_names(annotations)
        stems = _split_stems(folder, split, xml_names)
        return _Layout(annotations, images, stems, annotations, xml_names, has_lists=True)
    home = folder / split if (folder / split).is_dir() else folder
    annotations, images = _subfolder(home, ANNOTATION_FOLDERS), _subfolder(home, IMAGE_FOLDERS)
    xml_names = _xml_names(annotations)
    may_be_deep = annotations != folder  # whose folders can be other splits
    stems = sorted(stem for stem in xml_names if may_be_deep or "/" not in stem)
    if not stems or (home == folder and split != "train"):
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ValueError(
            f"{folder} has no split {split!r}: it has no lists in ImageSets/Main, and no folder of "
            f"this name with XML files; its folders are {found}. Data without splits only have the "
            "split 'train', of all images."
        )
    if home == folder:
        text = f"{folder} has no ImageSets/Main; the split 'train' has all images with XML file"
        problems.append(Problem("no splits", None, text, False))
    all_annotations = annotations if home == folder else folder
    return _Layout(annotations, images, stems, all_annotations, xml_names, has_lists=False)


def _subfolder(folder: Path, names: Sequence[str]) -> Path:
    """Return the first of the folders that exists, or the folder itself."""
    return next((folder / name for name in names if (folder / name).is_dir()), folder)


def _image_files(folder: Path) -> dict[str, list[str]]:
    """Return the sorted names of the images with each name without ending."""
    files = defaultdict(list)
    for name in files_below(folder, image_endings()):  # may have other files of annotation tools
        name = name.replace(os.sep, "/")
        files[os.path.splitext(name)[0]].append(name)
    return files


def _unnamed_images(
    layout: _Layout, folder: Path, named_images: Mapping[str, Sequence[str]]
) -> list[str]:
    """Return the images without XML file of this name, if there are no lists of images."""
    known, may_be_deep = set(layout.stems), layout.images != folder  # as in `_find_layout`
    stems = (stem for stem in named_images if may_be_deep or "/" not in stem)
    unnamed = (stem for stem in stems if stem not in known and not layout.has_lists)
    return [name for stem in unnamed for name in named_images[stem]]


def _note_unread_images(
    images: ImageFolder, unnamed: Sequence[str], problems: list[Problem]
) -> None:
    read = set(images.file_names.tolist()) if unnamed else ()  # can be spelled in another way
    lost = [name for name in unnamed if name not in read]
    if lost:
        text = (
            f"{len(lost)} images in {images.folder} have no XML file and aren't read, such as "
            f"{some_of(lost, 3)}; images without objects need an XML file without objects"
        )
        problems.append(Problem("images without XML file", None, text, False))


def _xml_names(folder: Path) -> dict[str, str]:
    """Return the names of XML files, by their names without ending."""
    return {name[:-4].replace(os.sep, "/"): name for name in files_below(folder, {".xml"})}


def _named_image(root: Element, names: Sequence[str], file: str) -> str:
    """Return the one of several images that an XML file belongs to."""
    named = PureWindowsPath(root.findtext("filename", "").strip()).name
    found = [name for name in names if PurePosixPath(name).name == named]
    if not found:
        raise ValueError(
            f"{file} could be of any of the images {list(names)}, and its 'filename' is {named!r}; "
            "rename or remove the others"
        )
    return found[0]


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


def _split_stems(folder: Path, split: str, xml_names: Container[str]) -> list[str]:
    """Read the names of a split's images, without file endings."""
    lists = folder / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in lists.glob("*.txt"))
        raise ValueError(f"{file} doesn't exist; the splits in {lists} are {known}.")
    lines = [line.strip() for line in read_lines(file)]
    stems = [_stem(line, xml_names) for line in lines if line]
    if not stems:
        raise ValueError(f"{file} lists no images.")
    check_stays_inside(stems)
    return stems


def _stem(line: str, xml_names: Container[str]) -> str:
    """Remove the second column of the lists of single classes, or an image's folder and ending."""
    if line in xml_names:
        return line  # names may contain spaces and numbers
    without = re.sub(r"\s+-?[01]$", "", line)
    path = PurePosixPath(without.replace("\\", "/"))
    if path.suffix.lower() in image_endings():
        return path.with_suffix("").as_posix().removeprefix("JPEGImages/")
    return without


def _all_class_names(files: Sequence[str]) -> list[str]:
    names = set()
    for file in tqdm(files, desc="VOC names", unit="file", disable=None):
        try:
            names |= {
                found.findtext("name", "").strip() for found in parse_xml(file).iter("object")
            }
        except ValueError:
            continue  # reported when its image is read
    return sorted(names - {""})


def _size_hw(root: Element) -> tuple[int | None, int | None]:
    """Return the height and width, None if the file has none."""
    values = [root.findtext(f"size/{key}", "").strip() for key in ("height", "width")]
    if not all(value.isdecimal() and int(value) for value in values):
        return None, None
    return int(values[0]), int(values[1])


def _object(found: Element, file: str) -> tuple[str, list[float], bool]:
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
    # Values divided by the image's size are kept as they are, by which the table finds them.
    first = 0 if 0 <= min(corners) < 1 and max(corners) <= 1 else 1
    box = [x0 - first, y0 - first, x1, y1]
    return name, box, found.findtext("difficult", "0").strip() == "1"
