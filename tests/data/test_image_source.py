"""Image files: names inside their folder, upright pixels, errors that name the file."""

import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from hf_detr.data.image_source import (
    ImageFolder,
    image_size_hw,
    read_pixels,
    read_segment_ids,
    read_sizes_hw,
    segment_boxes,
    with_boxes,
)

from ..some_data import write_image


@pytest.mark.parametrize(
    "name",
    [
        "../1.png",
        "a/../../1.png",
        "/etc/passwd",
        "..\\1.png",
        "C:\\1.png",
        "C:1.png",
        "\\\\host\\share\\1.png",
        "a\0.png",
        "",
        ".",
        7,
    ],
)
def test_file_names_outside_the_folder_raise(tmp_path: Path, name: object):
    """Untrusted data sets can't read other files of the user, on any operating system."""
    with pytest.raises(ValueError, match="not a path inside the image folder"):
        ImageFolder(tmp_path, ["fine/1.png", name])


def test_file_names_inside_the_folder_are_valid(tmp_path: Path):
    """Subfolders and unusual names are allowed."""
    folder = ImageFolder(tmp_path, ["a/b/1.png", "..1.png", "ü ..png"])
    assert len(folder) == 3 and folder.name(0) == str(tmp_path / "a/b/1.png")


def test_missing_folder_raises(tmp_path: Path):
    """A wrong folder is one error, not one for each missing file."""
    with pytest.raises(FileNotFoundError, match="image folder .*nowhere' doesn't exist"):
        ImageFolder(tmp_path / "nowhere", [])


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_rotated_photo_has_upright_size_and_pixels(tmp_path: Path, ending: str):
    """Annotation tools show photos with their EXIF orientation applied."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (50, 40)).save(tmp_path / f"1.{ending}", exif=exif)
    folder, problems = ImageFolder(tmp_path, [f"1.{ending}"]), []
    assert image_size_hw(folder, 0, problems) == (50, 40) and not problems
    assert read_pixels(folder, 0).shape == (3, 50, 40)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_mode_gives_three_contiguous_channels(tmp_path: Path, mode: str):
    """Transforms get RGB for gray and transparent images too."""
    name = "1.tif" if mode == "CMYK" else "1.png"
    PIL.Image.new("RGB", (50, 40), (9, 9, 9)).convert(mode).save(tmp_path / name)
    pixels = read_pixels(ImageFolder(tmp_path, [name]), 0)
    assert pixels.shape == (3, 40, 50) and pixels.dtype == torch.uint8 and pixels.is_contiguous()


def test_unreadable_images_are_named(tmp_path: Path):
    """The error names the file, so that it can be found among thousands."""
    (tmp_path / "text.png").write_text("not an image")
    whole = write_image(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:2000])
    PIL.Image.fromarray(np.zeros((4, 5), dtype=np.float32)).save(tmp_path / "float.tif")
    folder = ImageFolder(tmp_path, ["text.png", "half.png", "missing.png", "float.tif"])
    for index in range(3):
        with pytest.raises(ValueError, match=f"{folder.name(index)} can't be read"):
            read_pixels(folder, index)
    with pytest.raises(ValueError, match="32-bit float pixels"):
        read_pixels(folder, 3)
    if PIL.features.check("avif"):  # its reader raises other errors
        write_image(tmp_path / "broken.avif")
        content = (tmp_path / "broken.avif").read_bytes()
        start = content.index(b"mdat") + 4
        (tmp_path / "broken.avif").write_bytes(content[:start] + bytes(len(content) - start))
        with pytest.raises(ValueError, match="broken.avif can't be read"):
            read_pixels(ImageFolder(tmp_path, ["broken.avif"]), 0)
    problems: list = []
    assert [image_size_hw(folder, i, problems) for i in range(3)] == [(0, 0), (40, 50), (0, 0)]
    assert [(p.image, p.is_fatal) for p in problems] == [(0, True), (2, True)]


def test_stamp_changes_with_the_file(tmp_path: Path):
    """The cache of the data check notices changed files."""
    folder = ImageFolder(tmp_path, ["1.png"])
    with pytest.raises(OSError):
        folder.stamp(0)
    write_image(tmp_path / "1.png")
    before = folder.stamp(0)
    write_image(tmp_path / "1.png", width=60)
    assert folder.stamp(0) != before
    # Editors of metadata can keep the size and the time, and so do copies in another file.
    path, before = tmp_path / "1.png", folder.stamp(0)
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    time.sleep(0.02)  # more than a tick of the clock of file systems
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    os.utime(path, ns=times)
    assert folder.stamp(0) != before
    before = folder.stamp(0)
    shutil.copy2(path, tmp_path / "2.png")
    (tmp_path / "2.png").replace(path)
    assert folder.stamp(0) != before


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "I;16"])
def test_segment_ids_of_every_kind_of_map(tmp_path: Path, mode: str):
    """RGB maps in COCO's encoding, gray and palette maps are decoded."""
    ids = np.array([[0, 1, 2], [3, 200, 255]])
    if mode == "RGB":
        ids[1, 1] = 3 + 256 * 2 + 65536
        image = PIL.Image.fromarray(
            np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)
        )
    else:
        ids[1, 1] = 60000 if mode == "I;16" else 200
        image = PIL.Image.fromarray(ids.astype(np.uint16 if mode == "I;16" else np.uint8))
        if mode == "P":
            image.putpalette(list(range(255, -1, -1)) * 3)
    image.save(tmp_path / "1.png")
    found = read_segment_ids(ImageFolder(tmp_path, ["1.png"]), 0)
    assert found.dtype == torch.int64 and found.tolist() == ids.tolist()


def test_boxes_of_segments_are_tight():
    """Boxes of panoptic data come from the map; a segment without pixels has no box."""
    segment_ids = torch.zeros(6, 8, dtype=torch.int64)
    segment_ids[1:3, 2:7] = 9
    segment_ids[5, 7] = 9
    boxes = segment_boxes(segment_ids, [9, 4])
    assert boxes[0] == [2, 1, 6, 5]
    assert all(map(math.isnan, boxes[1]))


def test_only_missing_boxes_are_filled_in(tmp_path):
    """Existing boxes are kept, and formats are never mixed."""
    image = PIL.Image.new("L", (8, 6))
    image.paste(9, (2, 1, 7, 3))
    image.save(tmp_path / "1.png")
    maps = ImageFolder(tmp_path, ["1.png"])
    segments = [{"id": 9}, {"id": 9, "bbox": [1, 1, 1, 1]}]
    found = with_boxes(segments, maps, 0, "coco_xywh")
    assert [segment["bbox"] for segment in found] == [[2, 1, 5, 2], [1, 1, 1, 1]]
    with pytest.raises(ValueError, match="box_format is 'xyxy'; add the missing boxes"):
        with_boxes(segments, maps, 0, "xyxy")
    for broken in ({"bbox": [1, 1, 1, 1]}, {"id": None}, {"id": "9"}, 9):
        with pytest.raises(
            ValueError, match="1.png has the segment .*expected a dict with the integer 'id'"
        ):
            with_boxes([broken], maps, 0, "coco_xywh")


def test_sizes_read_in_threads(tmp_path: Path):
    """Sizes and problems have the order of the images."""
    names = [f"{number}.png" for number in range(30)]
    for number in range(0, 30, 2):
        write_image(tmp_path / names[number], 20 + number, 30)
    problems = []
    sizes = read_sizes_hw(ImageFolder(tmp_path, names), range(4, 30), problems)
    assert sizes == [(0, 0) if n % 2 else (20 + n, 30) for n in range(4, 30)]
    assert [problem.image for problem in problems] == list(range(5, 30, 2))
