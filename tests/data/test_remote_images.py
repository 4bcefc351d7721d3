"""COCO data whose images, and annotations, are in a storage or on the web."""

import functools
import http.server
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import fsspec
import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader

from hf_detr import read_coco, read_data, read_splits
from hf_detr.data import check as data_check
from hf_detr.data import remote_images, table_cache
from hf_detr.data.check import check_dataset
from hf_detr.data.coco import read_coco_panoptic
from hf_detr.data.formats import DataArguments
from hf_detr.data.remote_images import RemoteImages
from hf_detr.data.split_check import SHARED, check_splits
from hf_detr_command_line import main

from ..some_data import CATEGORIES, entry, write_coco, write_image

ENTRIES = [entry(1), entry(2, 2, category_id=18)]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without messages."""

    def log_message(self, *values: object) -> None:
        """Print nothing."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary cache instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hf_detr"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """The folder of a COCO file, `annotations.json`, and its `images`."""
    write_coco(tmp_path / "local", ENTRIES)
    return tmp_path / "local"


@pytest.fixture(params=["memory", "file", "http"])
def address(request: pytest.FixtureRequest, local: Path) -> Iterator[str]:
    """The address of the same folder."""
    if request.param == "file":
        yield local.as_uri()
    elif request.param == "memory":
        storage = fsspec.filesystem("memory")
        storage.put(str(local), "/mine", recursive=True)
        yield "memory://mine"
        storage.rm("/mine", recursive=True)
    else:
        handler = functools.partial(Quiet, directory=str(local))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()


def renew(address: str, local: Path) -> None:
    """Copy the folder's new content to its address."""
    if address.startswith("memory"):
        storage = fsspec.filesystem("memory")
        storage.rm("/mine", recursive=True)
        storage.put(str(local), "/mine", recursive=True)


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of 12 images, of which the check reads 5; `annotations.json` is local."""
    monkeypatch.setattr(data_check, "REMOTE_SAMPLE", 5)
    write_coco(tmp_path, ENTRIES, num_images=12)
    storage = fsspec.filesystem("memory")
    storage.put(str(tmp_path / "images"), "/many", recursive=True)
    yield "memory://many"
    storage.rm("/many", recursive=True)


def test_same_examples(local: Path, address: str) -> None:
    """Images in a storage or on the web, and their annotations, are those of the folder."""
    expected = read_coco(local / "annotations.json", local / "images")
    for file in (str(local / "annotations.json"), f"{address}/annotations.json"):
        data = read_data(file, images=f"{address}/images/")
        assert data.images.name(1) == f"{address}/images/2.png" and data.id2label[0] == "car"
        for (image, target), (other, expected_target) in zip(data, expected, strict=True):
            assert torch.equal(image, other)
            assert torch.equal(target["boxes"], expected_target["boxes"])
    assert check_dataset(data).may_train
    parts = read_splits(file, images=f"{address}/images", val_fraction=0.5)
    assert list(map(len, parts)) == [1, 1]


def test_workers_open_the_storage_themselves(local: Path) -> None:
    """Workers read images, also after this process has read some; no connection is sent to them."""
    data = read_coco(local / "annotations.json", (local / "images").as_uri())
    assert data[0][0].shape == (3, 40, 50)
    sent = pickle.dumps(data)
    assert b"FileSystem" not in sent and pickle.loads(sent)[1][0].shape == (3, 40, 50)
    loader = DataLoader(data, batch_size=None, num_workers=2)
    assert [int(target["image_id"]) for _, target in loader] == [1, 2]


def test_names(address: str, local: Path) -> None:
    """Names with spaces and other characters, and addresses inside the folder, are read."""
    names = ["a b#1?.png", "sub/ü%41.png"]
    for name in names:
        write_image(local / "images" / name)
    folder = f"{address}/images"
    renew(address, local)
    encoded = [quote(name) if address.startswith("http") else name for name in names]
    images = RemoteImages(folder, [*names, *(f"{folder}/{name}" for name in encoded)])
    for index in range(4):
        assert images.open(index).size == (50, 40)
    with pytest.raises(ValueError, match="is not a path inside the image folder"):
        RemoteImages(folder, ["../secret.png"])
    with pytest.raises(ValueError, match=f"'http://other/1.png' .* isn't inside {folder}"):
        RemoteImages(folder, ["1.png", "http://other/1.png"])


def test_sizes_are_read_from_headers(
    local: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing sizes don't download whole images, except those with other data in front."""
    content = json.loads((local / "annotations.json").read_text())
    for record in content["images"]:
        del record["height"]
    (local / "annotations.json").write_text(json.dumps(content))
    read = []

    def read_file(address: str, most: int | None = None) -> bytes:
        read.append(most)
        return original(address, most)

    original = remote_images.read_file
    monkeypatch.setattr(remote_images, "read_file", read_file)
    data = read_coco(local / "annotations.json", f"{address}/images")
    assert data.image_hw(1) == (40, 50) and read == [remote_images.HEADER] * 2
    monkeypatch.setattr(remote_images, "HEADER", 10)
    assert read_coco(local / "annotations.json", f"{address}/images").image_hw(1) == (40, 50)
    assert data[0][0].shape == (3, 40, 50) and read[-1] is None


def test_errors_name_the_address(address: str, local: Path) -> None:
    """Missing and broken images and files, and errors in a file, are told by their address."""
    (local / "images" / "1.png").write_bytes(b"broken")
    (local / "images" / "2.png").unlink()
    (local / "annotations.json").write_text('{"images": 1}')
    (local / "own.json").write_text(json.dumps({**_content(), "annotations": ENTRIES}))
    renew(address, local)
    data = read_data(f"{address}/own.json", images=f"{address}/images")
    with pytest.raises(ValueError, match=f"{address}/images/1.png can't be read: cannot identify"):
        data[0]
    with pytest.raises(ValueError, match=f"{address}/images/2.png can't be read: "):
        data[1]
    report = check_dataset(data)
    assert not report.may_train and set(report.image_names.values()) == {
        f"{address}/images/{number}.png" for number in (1, 2)
    }
    with pytest.raises(ValueError, match=rf"^{address}/annotations.json has no list of objects"):
        read_data(f"{address}/annotations.json", images=f"{address}/images")
    with pytest.raises(ValueError, match=rf"^{address}/no.json can't be downloaded: "):
        read_data(f"{address}/no.json", images=f"{address}/images")


def _content() -> dict:
    images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (1, 2)]
    return {"images": images, "categories": CATEGORIES}


def test_what_cannot_be_read_is_refused_at_once(local: Path) -> None:
    """Unknown storages, missing packages, folders without tar files and missing --images."""
    file = str(local / "annotations.json")
    for images, message in (
        ("nonsense://b/x", "nonsense://b/x can't be read: Protocol not known"),
        ("dropbox://b/x", "dropbox://b/x can't be read: a package is missing"),
        ("no/folder", "--images no/folder isn't a folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            DataArguments(file, images=images).check()
    with pytest.raises(ValueError, match="requires --images"):
        DataArguments("memory://mine/annotations.json").check()
    with pytest.raises(ValueError, match="nonsense://a.json can't be read"):
        DataArguments("nonsense://a.json", images="memory://x").check()
    with pytest.raises(ValueError, match="has no tar files. Of data at an address, .* --images"):
        DataArguments((local / "images").as_uri()).check()


def test_panoptic(local: Path, address: str) -> None:
    """Segment maps can be at an address too."""
    PIL.Image.new("L", (50, 40), 7).save(local / "images" / "map.png")
    segments = [{"id": 7, "category_id": 3}]
    annotation = {"image_id": 1, "file_name": "map.png", "segments_info": segments}
    (local / "panoptic.json").write_text(json.dumps({**_content(), "annotations": [annotation]}))
    renew(address, local)
    data = read_coco_panoptic(f"{address}/panoptic.json", *[f"{address}/images"] * 2)
    assert data[0][1]["masks"].all() and data[0][1]["boxes"].tolist() == [[0, 0, 50, 40]]


def test_files_are_downloaded_once(
    local: Path, address: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The annotation file's copy, and the table of a large one, are used until it changes."""
    monkeypatch.setattr(table_cache, "MIN_BYTES", 0)
    file = f"{address}/annotations.json"
    for _ in range(2):
        data = read_coco(file, f"{address}/images")
        assert data[1][0].shape == (3, 40, 50) and data.images.name(0) == f"{address}/images/1.png"
        assert len(list((cache / "downloads").iterdir())) == 1
        assert len(list((cache / "tables").iterdir())) == 1
    (local / "annotations.json").write_text(json.dumps({**_content(), "annotations": []}))
    renew(address, local)
    assert len(read_coco(file, f"{address}/images").table.ids) == 0


def test_check_reads_a_sample(many: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of many remote images a few are read, the same each time; all only if that is asked for."""
    data = read_coco(tmp_path / "annotations.json", many)
    fsspec.filesystem("memory").rm("/many/3.png")
    for decode, numbers in ((None, (5, 7)), (False, (0, 7)), (True, (12, 0))):
        report = check_dataset(data, decode=decode)
        assert (report.num_decoded, report.num_unread) == numbers
    assert [problem.image for problem in report.problems if problem.is_fatal] == [2]
    given = ["check", "--data", str(tmp_path / "annotations.json"), "--images", many]
    main(given)
    assert "read 5 images, a sample of the remote ones; not 7 others" in capsys.readouterr().out
    assert main([*given, "--decode-all"]) == 1


def test_remote_splits_are_compared_by_address(
    many: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image in two splits is found without reading the images' content."""
    data = read_coco(tmp_path / "annotations.json", many)
    splits = {"train": data.subset(range(6)), "val": data.subset(range(5, 12))}
    opened = []
    original = RemoteImages.open
    monkeypatch.setattr(
        RemoteImages, "open", lambda self, i: (opened.append(i), original(self, i))[1]
    )
    report = check_splits(splits, use_cache=False)
    shared = [problem for problem in report.problems if problem.kind == SHARED]
    assert len(shared) == 1 and f"{many}/6.png (train) and {many}/6.png (val)" in shared[0].text
    assert len(set(opened)) <= 10
    report = check_splits(splits, decode=True, use_cache=False)
    assert [problem.kind for problem in report.problems].count(SHARED) == 1


def test_failures_are_not_cached(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that couldn't be read are read again by the next command, for sizes and checks."""
    monkeypatch.setattr(table_cache, "MIN_BYTES", 0)
    file = local / "annotations.json"
    content = json.loads(file.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    file.write_text(json.dumps(content))
    storage = fsspec.filesystem("memory")
    with pytest.warns(UserWarning, match="there is no such file"):
        data = read_coco(file, "memory://late")
    assert not check_dataset(data).may_train
    storage.put(str(local / "images"), "/late", recursive=True)
    data = read_coco(file, "memory://late")
    assert not data.table.problems and check_dataset(data).may_train
    storage.rm("/late", recursive=True)


def test_checks_are_repeated_after_failures(local: Path) -> None:
    """A check that failed for the connection isn't kept as one of the image."""
    data = read_coco(local / "annotations.json", "memory://later")
    assert not check_dataset(data).may_train
    storage = fsspec.filesystem("memory")
    storage.put(str(local / "images"), "/later", recursive=True)
    assert check_dataset(data).may_train
    storage.rm("/later", recursive=True)
