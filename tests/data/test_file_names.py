"""Names of files: other spellings inside the folder, encodings of lists, endings of images."""

import re
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hf_detr.data.file_names import (
    files_below,
    image_endings,
    is_inside,
    is_plain,
    names_inside,
    read_lines,
)
from hf_detr.data.image_source import ImageFolder

from ..some_data import write_image


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("sub\\a b.png", "sub/a b.png"),
        (".\\sub\\a b.png", "sub/a b.png"),
        ("sub/a%20b.png", "sub/a b.png"),
        ("C:\\Users\\me\\images\\sub\\a b.png", "sub/a b.png"),
        ("/home/me/images/1.png", "1.png"),
        ("file:///home/me/images/1.png", "1.png"),
        ("file:///C:/images/sub/a%20b.png", "sub/a b.png"),
        ("https://example.com/images/1.png?token=/2.png", "1.png"),
        ("s3://bucket/sub/a b.png", "sub/a b.png"),
        ("images/1.png", "1.png"),
        ("images\\1.png", "1.png"),
        ("/data/upload/3/1.png", "1.png"),
        ("/data/upload/3/0a1b2c3d-1.png", "1.png"),
        ("images/0a1b2c3d-1.png", "1.png"),
        ("../../label-studio/data/media/upload/3/1.png", "1.png"),
        ("/data/local-files/?d=images/sub/a%20b.png", "sub/a b.png"),
        ("http://localhost:8080/data/local-files/?d=images%5Csub%5Ca b.png", "sub/a b.png"),
        ("u\u0308.png", "\u00fc.png"),
        ("1.PNG", "1.png"),
        ("Sub/A b.png", "sub/a b.png"),
        ("\u00dc.PNG", "\u00fc.png"),
    ],
)
def test_other_spellings_are_found_inside_the_folder(tmp_path: Path, name: str, file: str):
    """Names of Windows, URLs, other computers and Label Studio mean the files here, with a note."""
    folder = tmp_path / "images"
    for existing in ("1.png", "2.png", "sub/a b.png", "\u00fc.png"):
        write_image(folder / existing)
    images = ImageFolder(folder, ["2.png", name])
    assert images.name(1) == str(folder / file)
    (note,) = images.notes
    assert not note.is_fatal and repr(name) in note.text and repr(file) in note.text


@pytest.mark.parametrize(
    "name",
    [
        "/etc/../1.png",
        "../1.png",
        "..\\1.png",
        "..%2F1.png",
        "/data/upload/../secret.png",
        "file:///../secret.png",
        "/data/local-files/?d=../secret.png",
        "%2e%2e/secret.png",
        "/etc/passwd",
    ],
)
def test_no_spelling_leaves_the_folder(tmp_path: Path, name: str):
    """A file beside the folder is never read, even though it exists."""
    write_image(tmp_path / "secret.png")
    write_image(tmp_path / "images" / "1.png")
    try:
        images = ImageFolder(tmp_path / "images", [name])
    except ValueError as error:
        assert "not a path inside the image folder" in str(error)
    else:  # a name inside, whose file is missing
        assert ".." not in Path(images.name(0)).parts and not Path(images.name(0)).exists()


def test_existing_names_win(tmp_path: Path):
    """A file that really has such a name isn't replaced by another."""
    for name in ("a%20b.png", "a b.png", "0a1b2c3d-1.png", "1.png"):
        write_image(tmp_path / name)
    names = ["a%20b.png", "a b.png", "0a1b2c3d-1.png", "missing%20.png"]
    assert names_inside(tmp_path, names) == (names, None)


def test_two_names_of_one_file_raise(tmp_path: Path):
    """Boxes of two images aren't drawn on the same one."""
    write_image(tmp_path / "1.png")
    with pytest.raises(ValueError, match="'/train/1.png' and '/val/1.png' .* both mean '1.png'"):
        ImageFolder(tmp_path, ["/train/1.png", "/val/1.png"])


def test_another_case_needs_one_file_that_nothing_else_names(tmp_path: Path):
    """Files that differ in case only are told apart, as is a missing one from another image's."""
    for name in ("a.png", "A.png", "b.png", "sub/c.png"):
        write_image(tmp_path / name)
    names = ["b.png", "B.png", "c.png", "sub/D.png", "none/c.png", "sub/C.png", "Sub/c.png"]
    assert names_inside(tmp_path, names) == (names, None)
    if len(list(tmp_path.glob("[aA].png"))) == 2:  # else the file system ignores case
        assert names_inside(tmp_path, ["a.PNG", *names]) == (["a.PNG", *names], None)
    assert not ImageFolder(tmp_path, names).are_plain


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_every_encoding(tmp_path: Path, encoding: str):
    """Editors on Windows write byte-order marks."""
    (tmp_path / "list.txt").write_text("größe.png\n2.png\n", encoding=encoding)
    assert read_lines(tmp_path / "list.txt") == ["größe.png", "2.png"]


def test_other_encodings_are_named(tmp_path: Path):
    """Names aren't guessed from a wrong encoding."""
    (tmp_path / "list.txt").write_text("größe.png", encoding="latin-1")
    with pytest.raises(ValueError, match="list.txt isn't UTF-8 text: .*; save it as UTF-8"):
        read_lines(tmp_path / "list.txt")


def test_endings_are_those_of_images_that_can_be_opened():
    """Unusual formats of photos count, documents and videos don't."""
    usual = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
    unusual = {".jfif", ".jpe", ".gif", ".jp2", ".ppm", ".pgm", ".tga", ".mpo", ".apng"}
    assert usual | unusual <= image_endings()
    assert not image_endings() & {
        ".pdf",
        ".eps",
        ".ps",
        ".mpg",
        ".txt",
        ".json",
        ".h5",
        ".psd",
        ".ico",
    }
    assert (".avif" in image_endings()) == PIL.features.check("avif")


@given(st.text(st.sampled_from("a1f/.\\\\-: ~%\0\né"), max_size=8) | st.just(7))
@example("12345678-a.png")
@example("sub/12345678-a.png")
@example("upload/a.png")
@example("images/a.png")
@example("/a.png")
@example("a/../../b.png")
@example("a.png\n")
def test_plain_names_need_no_parsing(name: object):
    """The names that aren't parsed as paths are inside the folder and aren't looked up there."""
    if is_plain(name, Path("images")):
        assert is_inside(name)
        assert names_inside(Path("images"), [name]) == ([name], None)
        assert not re.search(r"//|\\\\|:|%|[^ -~]|^/|^images/|upload/|(^|/)[0-9a-f]{8}-", name)


@pytest.mark.parametrize("name", ["000000000009.jpg", "train2017/a b.jpg", "0123/x-1_2.tar.png"])
def test_usual_names_are_plain(name: str):
    """Hundreds of thousands of names are read in a fraction of a second."""
    assert is_plain(name, Path("images"))


def test_files_below_are_sorted_folder_by_folder(tmp_path: Path):
    """As paths are sorted, in which a slash comes first."""
    names = ["a/2.JPG", "a/1.jpg", "a-b/1.jpg", "a/sub/1.jpg", "z.jpg", "a/1.txt", "jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = files_below(tmp_path, {".jpg"})
    assert found == ["a/1.jpg", "a/2.JPG", "a/sub/1.jpg", "a-b/1.jpg", "z.jpg"]
    assert found == files_below(f"{tmp_path}/", {".jpg"})
    assert files_below(tmp_path / "nowhere", {".jpg"}) == []


def test_links_to_folders_are_followed_once(tmp_path: Path):
    """Linked folders have images too, but links can be circles, or lead to a folder of the data."""
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "z", other / "inner"):
        folder.mkdir(parents=True)
        (folder / "1.jpg").touch()
    links = {
        root / "a": root / "z",
        root / "z" / "circle.jpg": root,
        root / "b": other,
        root / "c": other / "inner",
        other / "back": root,
        other / "up": tmp_path,
    }
    for link, folder in links.items():
        link.symlink_to(folder)
    assert files_below(root, {".jpg"}) == ["b/inner/1.jpg", "z/1.jpg"]
    (tmp_path / "link").symlink_to(root)
    assert files_below(tmp_path / "link", {".jpg"}) == ["b/inner/1.jpg", "z/1.jpg"]
