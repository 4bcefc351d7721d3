"""Tests `examples/garments/make_garments.py` with squares instead of garments.

The squares have a hole and are saved in Fashion-MNIST's file format.
"""

import gzip
import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from hf_detr.image_processing.coco_masks import masks_from_segmentation

SCRIPT = Path(__file__).parents[1] / "examples" / "garments" / "make_garments.py"
FILES = ("images-idx3-ubyte", "labels-idx1-ubyte")
GREYS = {"train": 90, "t10k": 240}


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_source(folder: Path) -> None:
    """Write 20 squares per split, darker ones for training; one file isn't compressed."""
    folder.mkdir()
    for split, grey in GREYS.items():
        images = np.zeros((20, 28, 28))
        images[:, 4:24, 4:24] = grey
        images[:, 10:12, 10:12] = 0
        write_idx(folder / f"{split}-{FILES[0]}.gz", images)
        write_idx(
            folder / f"{split}-{FILES[1]}{'' if split == 'train' else '.gz'}", np.arange(20) % 10
        )


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    for package in ("skimage", "sklearn"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("make_garments", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` and the script's output in `first`."""
    folder = tmp_path_factory.mktemp("garments")
    write_source(folder / "source")
    make(script, folder, "first")
    return folder


def make(script: ModuleType, folder: Path, output: str, *options: str) -> None:
    places = ("--source", str(folder / "source"), "--output", str(folder / output))
    sizes = ("--images-train", "6", "--images-test", "5", "--side", "128", "--panoptic")
    script.main([*places, *sizes, *options])


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_boxes_and_areas_are_those_of_the_masks(made: Path) -> None:
    """Boxes are tight around visible pixels, and masks don't overlap."""
    for split, count in (("train", 6), ("test", 5)):
        data = json.loads((made / "first" / split / "annotations.json").read_text())
        assert len(data["images"]) == count and len(data["categories"]) == 10
        count_of = {image["id"]: np.zeros((128, 128), int) for image in data["images"]}
        for annotation in data["annotations"]:
            mask = masks_from_segmentation(annotation["segmentation"], (128, 128), "mask").numpy()
            rows, columns = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (columns.min(), rows.min())
            assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
            assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0
            assert 1 <= annotation["category_id"] <= 10
            count_of[annotation["image_id"]] += mask
        for image in data["images"]:
            assert count_of[image["id"]].max() == 1  # there are objects, without overlaps
            with Image.open(made / "first" / split / "images" / image["file_name"]) as opened:
                assert opened.size == (image["width"], image["height"]) == (128, 128)


def test_segments_are_the_instances_and_the_rest(made: Path) -> None:
    """Panoptic maps equal the masks, and all pixels have a segment."""
    folder = made / "first" / "train"
    instances = json.loads((folder / "annotations.json").read_text())["annotations"]
    panoptic = json.loads((folder / "panoptic.json").read_text())
    assert [c["isthing"] for c in panoptic["categories"]] == [1] * 10 + [0]
    for image in panoptic["annotations"]:
        with Image.open(folder / "panoptic" / image["file_name"]) as opened:
            numbers = np.asarray(opened).astype(int) @ [1, 256, 256**2]
        segments = image["segments_info"]
        assert sorted(np.unique(numbers)) == [segment["id"] for segment in segments]
        assert all((numbers == segment["id"]).sum() == segment["area"] for segment in segments)
        things = [segment for segment in segments if segment["category_id"] <= 10]
        mine = [one for one in instances if one["image_id"] == image["image_id"]]
        assert len(things) == len(mine) == len(segments) - 1
        for thing, one in zip(things, mine, strict=True):
            mask = masks_from_segmentation(one["segmentation"], (128, 128), "mask").numpy()
            np.testing.assert_array_equal(numbers == thing["id"], mask)
            assert thing["category_id"] == one["category_id"] and thing["bbox"] == one["bbox"]


def test_reproducibility(script: ModuleType, made: Path) -> None:
    """The same seed gives the same files; a larger data set starts with the same images."""
    make(script, made, "again")
    assert contents(made / "again") == contents(made / "first")
    make(script, made, "other", "--seed", "1", "--images-train", "8")
    make(script, made, "longer", "--images-train", "8")
    first, other, longer = (contents(made / name) for name in ("first", "other", "longer"))
    images = [name for name in first if name.endswith(".jpg")]
    assert len(images) == 11
    assert all(first[name] != other[name] for name in images)
    assert all(first[name] == longer[name] for name in images)


def test_splits_share_neither_garments_nor_photographs(script: ModuleType, made: Path) -> None:
    """Test images have other garments and photographs than training images."""
    train, test = (set(script.PHOTOGRAPHS[split]) for split in ("train", "test"))
    assert train and test and not train & test
    for split, grey in (("train", GREYS["train"]), ("test", GREYS["t10k"])):
        sources, labels = script.read_split(str(made / "source"), split)
        assert set(np.unique(sources)) == {0, grey} and labels.tolist() == [*range(10)] * 2
    one, other = (script.read_photographs(split) for split in ("train", "test"))
    assert not {image.tobytes() for image in one} & {image.tobytes() for image in other}


def test_hub_copy_is_read_like_the_files(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's data set is Parquet with images; the test uses a local folder of this format."""
    datasets = pytest.importorskip("datasets")
    pixels = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(script.NAMES))}
    )
    rows = {"image": [Image.fromarray(one) for one in pixels], "label": list(range(10))}
    dataset = datasets.Dataset.from_dict(rows, features=features)
    dataset.to_parquet(tmp_path / "test-00000.parquet")
    monkeypatch.setattr(script, "HUB_NAME", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    read, labels = script.read_split("hub", "test")
    np.testing.assert_array_equal(read, pixels)
    assert labels.tolist() == list(range(10))


def test_half_of_every_garment_stays_visible(script: ModuleType) -> None:
    """At least half of a garment is visible."""
    square = np.zeros((1, 28, 28), np.uint8)
    square[:, 4:24, 4:24] = 200
    photographs = [Image.new("RGB", (128, 128))]
    overlaps = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, objects = script.make_scene(square, np.array([3]), photographs, 128, rng)
        for label, mask in objects:
            rows, columns = np.nonzero(mask)
            assert label == 3
            # A rotated square covers at least half of its box, and half of that is visible.
            box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            overlaps += mask.sum() < 0.5 * box
            assert mask.sum() >= 0.2 * box
    assert overlaps > 0


def test_cut_out_keeps_openings_and_drops_noise(script: ModuleType) -> None:
    """Small holes are filled, large ones are openings; specks are removed."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[5:25, 5:25] = 200
    pixels[8:10, 8:10] = 0  # four black pixels
    pixels[14:20, 14:20] = 0  # an opening
    pixels[5, 5:25] = 50  # an outline that is covered by a quarter
    pixels[1, 1] = 2  # noise
    garment = np.asarray(script.cut_out(pixels))
    assert garment.shape == (22, 22, 2)  # 20 x 20 and a rim
    grey, coverage = garment[1:-1, 1:-1, 0], garment[1:-1, 1:-1, 1]
    assert (coverage[3:5, 3:5] == 255).all() and (coverage[9:15, 9:15] == 0).all()
    assert set(coverage[0]) == {64} and set(grey[0]) == {200}
    assert garment[[0, -1], :, 1].max() == garment[:, [0, -1], 1].max() == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "dataset-fashion-mnist"),
        (lambda path: path.write_bytes(gzip.compress(b"\0\0\x08\x01no images")), "starts with"),
        (lambda path: write_idx(path, np.zeros((20, 28, 27))), "28 x 28"),
        (lambda path: write_idx(path, np.zeros((19, 28, 28))), "one label for every image"),
    ],
)
def test_damaged_sources(
    script: ModuleType, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    """Invalid files exit with a message, and nothing is written."""
    write_source(tmp_path / "source")
    damage(tmp_path / "source" / f"t10k-{FILES[0]}.gz")
    output = tmp_path / "output"
    with pytest.raises(SystemExit, match=message):
        script.main(["--source", str(tmp_path / "source"), "--output", str(output)])
    assert not output.exists()


def test_nothing_is_overwritten(
    script: ModuleType, made: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that isn't empty is rejected."""
    before = contents(made / "first")
    with pytest.raises(SystemExit):
        make(script, made, "first")
    assert "isn't empty" in capsys.readouterr().err
    assert contents(made / "first") == before
