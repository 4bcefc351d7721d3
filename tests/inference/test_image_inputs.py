"""What a command line can name as images: files, folders, lists, tars, storages."""

import io
import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from hf_detr.image_processing import image_reading
from hf_detr.inference.image_inputs import ImageInputs

from ..some_data import write_image


def names(inputs: ImageInputs, process: int = 0, num_processes: int = 1) -> list[str]:
    return [image.name for image in inputs.part(process, num_processes)]


def places(inputs: ImageInputs) -> list[str]:
    return [image.place for image in inputs.part(0, 1)]


def write_tar(file: Path, contents: dict[str, bytes], mode: str = "w") -> Path:
    """Write a tar file with these members."""
    with tarfile.open(file, mode) as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


@pytest.fixture
def storage() -> Iterator[fsspec.AbstractFileSystem]:
    """A storage in memory, with two photos in one folder and one further down."""
    memory = fsspec.filesystem("memory")
    for name in ("a 1.jpg", "b.png", "sub/c.png", "notes.txt"):
        memory.pipe(f"/photos/{name}", name.encode())
    yield memory
    memory.rm("/photos", recursive=True)


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    """Folders in order of names, patterns, each file once; existing names aren't patterns."""
    others = "a.eps", "film.mpg", "notes.md", "scan.pdf"
    for name in ("b.png", "a.JPG", *others, "[1].png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to("gone.png")
    folder = ImageInputs([str(tmp_path), str(tmp_path / "*.png"), str(tmp_path / "a.JPG")])
    folder.check()
    assert places(folder) == ["[1].png", "a.JPG", "b.png", "gone.png"]
    assert folder.count() == len(list(folder.local_files())) == 4
    assert [path.name for path in folder.skipped()] == list(others)
    assert places(ImageInputs([str(tmp_path / "[1].png")])) == ["[1].png"]
    assert places(ImageInputs([str(tmp_path / "**" / "c.png")])) == ["c.png"]
    address = "https://example.com/a*.jpg?b"
    both = ImageInputs([address, str(tmp_path / "a.JPG"), address])
    both.check()
    assert names(both) == [address, str(tmp_path / "a.JPG")] and places(both) == ["a*.jpg", "a.JPG"]
    with pytest.raises(FileNotFoundError, match=r"no\*such doesn't exist"):
        ImageInputs([str(tmp_path), "no*such"]).check()


@pytest.mark.parametrize("recursive", [False, True])
def test_folders_and_their_files_in_one_pattern(tmp_path: Path, recursive: bool) -> None:
    """Each image comes once, and files that aren't images are skipped, as in a folder."""
    for name in ("a.png", "b-1.png", "b/c.png", "b/d/e.png", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for pattern in ("**", "**/*", "*"):
        inputs = ImageInputs([f"{tmp_path}/{pattern}"], recursive)
        found = sorted(Path(name).name for name in names(inputs) if name.endswith(".png"))
        expected = ["a.png", "b-1.png", "c.png", "e.png"]
        assert found == (expected[:3] if pattern == "*" and not recursive else expected)
    assert "notes.md" not in places(ImageInputs([f"{tmp_path}/**"], recursive))


@pytest.mark.parametrize("file_is", ["first", "last"])
def test_files_in_folders_that_are_given_too(tmp_path: Path, file_is: str) -> None:
    """A file that is given itself must be an image; its folder doesn't skip it."""
    for name in ("photos/a.png", "photos/b.bin", "photos/c.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    given = [str(tmp_path / "photos"), str(tmp_path / "photos" / "b.bin")]
    inputs = ImageInputs(given if file_is == "last" else given[::-1])
    assert sorted(places(inputs)) == ["a.png", "b.bin"]
    assert [file.name for file in inputs.skipped()] == ["c.bin"]


def test_local_files_of_addresses(tmp_path: Path) -> None:
    """Files at `file://` addresses are local too; those on the web aren't."""
    photo = write_image(tmp_path / "a b.png")
    (tmp_path / "s.tar").touch()
    given = [photo.as_uri().replace("%20", " "), f"file://{tmp_path}", f"file://{tmp_path}/s.tar"]
    inputs = ImageInputs([*given, "https://example.com/a.jpg"])
    assert list(inputs.local_files()) == [photo, photo]


def test_folders_in_folders(tmp_path: Path) -> None:
    """With recursive, places are relative to the given folder; circles of links aren't followed."""
    for name in ("b.png", "one/1.png", "one/two/1.png", "one/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "one" / "circle").symlink_to(tmp_path)
    deep = ImageInputs([str(tmp_path), str(tmp_path / "one")], recursive=True)
    assert places(deep) == ["b.png", "one/1.png", "one/two/1.png"]
    assert [path.name for path in deep.skipped()] == ["notes.txt"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(ValueError, match="there are no images in .* --recursive"):
        ImageInputs([str(tmp_path)]).check()


@pytest.mark.parametrize("null", [False, True])
def test_lists_on_stdin(monkeypatch: pytest.MonkeyPatch, null: bool) -> None:
    """One name per line, or ended by NUL; names are yielded before the list has ended."""
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(os.fdopen(read, "rb")))
    end = b"\0" if null else b"\n"
    os.write(write, "photos/a ü.jpg".encode() + end + b"https://x.org/b%20c.png" + end + b"unfi")
    inputs = ImageInputs(["-"], null=null)
    inputs.check()
    assert inputs.have_streams and inputs.count() is None
    found = inputs.part(0, 1)
    assert [next(found).place, next(found).place] == ["a ü.jpg", "b c.png"]
    os.write(write, b"nished")
    os.close(write)
    assert [image.name for image in found] == ["unfinished"]
    sys.stdin.close()


def test_windows_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """The carriage returns and empty lines of lists that Windows wrote aren't parts of names."""
    text = io.TextIOWrapper(io.BytesIO(b"a.jpg\r\n\r\nb.jpg\r\n"))
    monkeypatch.setattr(sys, "stdin", text)
    assert names(ImageInputs(["-"])) == ["a.jpg", "b.jpg"]


def test_carriage_returns_in_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that end with NUL can have them, as Mac's folders' icons do."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Icon\r\0b.jpg\0")))
    assert names(ImageInputs(["-"], null=True)) == ["Icon\r", "b.jpg"]


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "tgz"])
def test_tars(tmp_path: Path, ending: str) -> None:
    """The images of a tar, compressed or not; what a member is named can't lead out of a folder."""
    contents = {"000/1.jpg": b"one", "000/1.cls": b"7", "../2.png": b"two", "/3.PNG": b"three"}
    mode = "w" if ending == "tar" else "w:gz"
    tar = write_tar(tmp_path / f"shard.{ending}", contents, mode)
    inputs = ImageInputs([str(tar)])
    inputs.check()
    found = list(inputs.part(0, 1))
    assert [image.content() for image in found] == [b"one", b"two", b"three"]
    assert [image.place for image in found] == ["000/1.jpg", "2.png", "3.PNG"]
    assert found[0].name == f"{tar}/000/1.jpg" and inputs.count() is None


def test_tars_on_the_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tar is read while it is downloaded; one that can't be reached is one failure."""
    tar = write_tar(tmp_path / "t.tar", {"1.jpg": b"one", "2.jpg": b"two"}).read_bytes()
    monkeypatch.setattr(image_reading, "urlopen", lambda *_, **__: io.BytesIO(tar))
    inputs = ImageInputs(["https://x.org/my%20t.tar?download=1"])
    inputs.check()
    assert [image.content() for image in inputs.part(0, 1)] == [b"one", b"two"]
    monkeypatch.setattr(image_reading, "urlopen", lambda *_, **__: io.BytesIO(b"<html>"))
    [broken] = inputs.part(0, 1)
    with pytest.raises(ValueError, match="download=1 can't be read to its end as a tar file"):
        broken.content()


def test_damaged_tars_fail_alone(tmp_path: Path) -> None:
    """A tar that ends too early gives its complete images and one failure; others are read."""
    members = {f"{number}.jpg": bytes(2000) for number in range(3)}
    whole = write_tar(tmp_path / "whole.tar", members)
    torn = tmp_path / "torn.tar"
    torn.write_bytes(whole.read_bytes()[:4000])
    first, broken, *others = ImageInputs([str(torn), str(whole)]).part(0, 1)
    assert first.content() == bytes(2000) and len(others) == 3
    with pytest.raises(ValueError, match="torn.tar can't be read to its end as a tar file"):
        broken.content()


def test_long_tars_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile would keep every member that it has read; nothing is kept of those that are done."""
    read = tarfile.TarFile.next
    kept = []

    def read_and_count(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        kept.append(len(tar.members))
        return read(tar)

    monkeypatch.setattr(tarfile.TarFile, "next", read_and_count)
    tar = write_tar(tmp_path / "a.tar", {f"{number}.jpg": b"x" for number in range(30)})
    assert len(names(ImageInputs([str(tar)]))) == 30
    assert len(kept) > 30 and max(kept) <= 1


def test_storages(storage: fsspec.AbstractFileSystem, tmp_path: Path) -> None:
    """Folders, patterns, files and tars in any storage that fsspec knows."""
    folder = ImageInputs(["memory://photos"])
    folder.check()
    assert names(folder) == ["memory:///photos/a 1.jpg", "memory:///photos/b.png"]
    assert [image.content() for image in folder.part(0, 1)] == [b"a 1.jpg", b"b.png"]
    assert places(ImageInputs(["memory://photos"], True)) == ["a 1.jpg", "b.png", "sub/c.png"]
    assert places(ImageInputs(["memory://photos/*/*.png"])) == ["sub/c.png"]
    [one] = ImageInputs(["memory://photos/b.png"]).part(0, 1)
    assert one.content() == b"b.png" and folder.count() is None
    storage.pipe("/photos/s.tar", write_tar(tmp_path / "s.tar", {"1.jpg": b"one"}).read_bytes())
    [member] = ImageInputs(["memory://photos/s.tar"]).part(0, 1)
    assert member.content() == b"one"
    [missing] = ImageInputs(["memory://photos/none.png"]).part(0, 1)
    with pytest.raises(ValueError, match=r"none.png can't be downloaded"):
        missing.content()
    with pytest.raises(ValueError, match="nonsense://a.png can't be read.*nonsense"):
        ImageInputs(["nonsense://a.png"]).check()


def test_processes_share_the_images(tmp_path: Path) -> None:
    """Each file and tar is read by exactly one process."""
    files = [str(write_image(tmp_path / f"{number}.png")) for number in range(5)]
    tar = str(write_tar(tmp_path / "a.tar", {"1.jpg": b"", "2.jpg": b""}))
    inputs = ImageInputs([*files, tar])
    assert names(inputs, 0, 2) == files[::2]
    assert names(inputs, 1, 2) == [*files[1::2], f"{tar}/1.jpg", f"{tar}/2.jpg"]
    positions = [[image.position for image in inputs.part(process, 2)] for process in range(2)]
    assert positions == [[0, 2, 4], [1, 3, 5, 5]]
