"""Files at addresses."""

import http.server
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hf_detr.data import remote_files
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


@pytest.mark.parametrize(
    ("error", "raised", "number"),
    [
        (TypeError("no credentials"), (OSError, "TypeError: no credentials"), 3),
        (ConnectionResetError("lost"), (ConnectionResetError, "lost"), 3),
        (FileNotFoundError("a"), (FileNotFoundError, r"there is no such file \(a\)"), 1),
        (HTTPError("http://a", 403, "Forbidden", None, None), (HTTPError, "Forbidden"), 1),
        (HTTPError("http://a", 503, "Busy", None, None), (HTTPError, "Busy"), 3),
        (HTTPError("http://a", 429, "Too many", None, None), (HTTPError, "Too many"), 3),
    ],
)
def test_files_are_read_again(
    error: Exception, raised: tuple[Any, str], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After errors that can pass, files are read again; all become those of files."""
    monkeypatch.setattr(remote_files, "PAUSES", (0, 0))
    calls = []

    def fail(*values: object) -> bytes:
        calls.append(values)
        if len(calls) <= num_failures:
            raise error
        return b"content"

    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    num_failures = 3
    with pytest.raises(raised[0], match=raised[1]):
        read_file("memory://a")
    assert len(calls) == number
    num_failures = len(calls) + 1
    if number > 1:
        assert read_file("memory://a") == b"content"


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
    assert not Path(copy).exists()
    with local_file(tmp_path / "a.json") as same:
        assert same == tmp_path / "a.json"


def test_interrupted_downloads_are_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file whose connection ends early isn't taken for a complete one, and leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(remote_files, "PAUSES", (0, 0))
    answers: list[bytes] = []
    headers = {"ETag": "1"}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = answers.pop(0)  # first, because after the headers the next request can come
            self.send_response(200)
            self.send_header("Content-Length", "10")
            for header in headers.items():
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *values: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.json"
        answers += [b"", b"half", b"half", b"half"]  # the first one is read for its headers
        message = "a.json can't be downloaded: the connection was lost 6 bytes before the end"
        with pytest.raises(ValueError, match=message), local_file(address):
            pass
        answers += [b"", b"half", b"0123456789"]
        with local_file(address) as copy:
            assert Path(copy).read_bytes() == b"0123456789"
        headers.clear()  # a copy that couldn't be found again isn't kept
        answers += [b"", b"9876543210"]
        with local_file(address) as other:
            assert Path(other).read_bytes() == b"9876543210"
        assert list(Path(copy).parent.iterdir()) == [copy]
        server.shutdown()
    assert not answers and [path.name for path in tmp_path.iterdir()] == ["cache"]
