"""Files at addresses."""

from pathlib import Path

import fsspec
import pytest

from hf_detr.data.formats import DataArguments
from hf_detr.data.remote_files import (
    check_address,
    is_address,
    is_on_web,
    is_remote,
    local_file,
    read_file,
)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("s3://bucket/a", (True, False, True)),
        ("HTTPS://host/a", (True, True, True)),
        ("file:///a", (True, False, False)),
        ("C://folder", (False, False, False)),
        ("photos/a.jpg", (False, False, False)),
    ],
)
def test_kinds(name: str, kinds: tuple[bool, bool, bool]) -> None:
    """Whether names are addresses, on the web, and on another computer."""
    assert (is_address(name), is_on_web(name), is_remote(name)) == kinds


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error has the command that installs the package; images on the web need none."""

    def missing(scheme: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.get_filesystem_class", missing)
    (tmp_path / "a.json").touch()
    with pytest.raises(ValueError, match="^s3://b/x can't be read: .*pip install s3fs"):
        DataArguments(str(tmp_path / "a.json"), images="s3://b/x").check()
    with pytest.raises(ValueError, match="pip install aiohttp requests"):
        DataArguments("https://example.com/a.tar").check()
    with pytest.raises(ValueError, match=r"a package is missing \(Install s3fs to access S3\)\.$"):
        check_address("other://b/x")
    check_address("https://example.com/a.jpg")


def test_unusual_errors_are_errors_of_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors that only a storage's library knows become those of files, which callers expect."""

    def fail(*values: object) -> bytes:
        raise TypeError("no credentials")

    monkeypatch.setattr(fsspec.implementations.memory.MemoryFileSystem, "cat_file", fail)
    with pytest.raises(OSError, match="TypeError: no credentials"):
        read_file("memory://a")


def test_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that can't be cached is used nevertheless, and other errors keep their kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").touch()
    (tmp_path / "a.json").write_text("[]", encoding="utf-8")
    address = (tmp_path / "a.json").as_uri()
    with (
        pytest.warns(UserWarning, match="a.json can't be cached"),
        local_file(address) as copy,
    ):
        assert Path(copy).read_text(encoding="utf-8") == "[]"
    Path(copy).unlink()
    with local_file(tmp_path / "a.json") as same:
        assert same == tmp_path / "a.json"
