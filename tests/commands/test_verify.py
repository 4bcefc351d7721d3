"""`hf-detr verify` on a stand-in for COCO and for a published checkpoint."""

import dataclasses
import json
import shutil
from pathlib import Path

import PIL.Image
import pytest

from hf_detr import DetrImageProcessor, embedded_model_folder
from hf_detr.checkpoints import published_checkpoints
from hf_detr.checkpoints.published_checkpoints import PublishedCheckpoint
from hf_detr.commands import verify
from hf_detr_command_line import main as run

from ..evaluation.test_evaluate import write_panoptic
from ..inference.test_prediction import SIZE, confident_segmenter
from .test_predict import GARMENTS

PUBLISHED = published_checkpoints.published_checkpoints()
NUM_IMAGES = 4
# What the embedded model finds in the image, turned and not; one object is annotated wrongly
BOXES = {8: (347, 229, 87, 98), 9: (369, 71, 87, 72), 1: (26, 54, 43, 92), 5: (90, 9, 50, 50)}


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO's layout."""
    return write_garments(tmp_path_factory.mktemp("coco"))


def write_garments(folder: Path) -> Path:
    """Write a few images of garments in COCO's layout."""
    names = json.loads((embedded_model_folder() / "config.json").read_text())["id2label"]
    (folder / "val2017").mkdir()
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number in range(NUM_IMAGES):
        with PIL.Image.open(GARMENTS) as image:
            image.save(folder / "val2017" / f"{number}.jpg", quality=95 - number)
        size = {"width": image.width, "height": image.height}
        images.append({"id": number, "file_name": f"{number}.jpg", **size})
        for label, (x, y, w, h) in BOXES.items():
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
            annotations.append({**entry, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    categories = [{"id": label, "name": names[str(label)]} for label in BOXES]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def publish(
    monkeypatch: pytest.MonkeyPatch, name: str = "someone/garments", **metrics: float
) -> PublishedCheckpoint:
    """Register a checkpoint as published."""
    one = dataclasses.replace(PUBLISHED[0], name=name, metrics=metrics, recorded=None)
    monkeypatch.setattr(published_checkpoints, "published_checkpoints", lambda: [*PUBLISHED, one])
    return one


@pytest.fixture
def garments(tmp_path: Path) -> str:
    """The embedded model in a folder of the published name."""
    return str(shutil.copytree(embedded_model_folder(), tmp_path / "garments"))


def ap_of(line: str) -> float:
    return float(line.split(": AP ")[1].split(",")[0])


def test_figures_are_compared(
    coco: Path, garments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Of all images the status tells whether the figures agree; the line has what is needed."""
    monkeypatch.setattr(verify, "NUM_IMAGES", NUM_IMAGES)
    publish(monkeypatch, AP=50.0)
    given = ["verify", garments, "--coco", str(coco), "--device", "cpu"]
    assert run(given) == 1
    [line] = capsys.readouterr().out.splitlines()
    measured = ap_of(line)
    # Three of the four classes are right, with boxes of about 95 %.
    assert 50 < measured <= 75
    assert f"AP {measured:.2f}, authors 50.0 ({measured - 50:+.2f}), 4 images of COCO" in line
    for part in ("someone/garments (", "hf_detr ", "torch 2", "transformers 5", "cpu, float32"):
        assert part in line
    for difference, status in ((-0.15, 0), (0.3, 1)):
        publish(monkeypatch, AP=measured + difference)
        assert run(given) == status


def test_part_of_the_images_is_no_verdict(
    coco: Path, garments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With --images, or data that aren't all of COCO's, there is a warning and status 0."""
    publish(monkeypatch, AP=1.0)
    given = ["verify", garments, "--coco", str(coco), "--device", "cpu"]
    assert run([*given, "--images", "2"]) == 0
    out, err = capsys.readouterr()
    assert "2 images of COCO 2017 val (random, seed 0)" in out and "±35.0 points" in err
    assert run([*given, "--images", "2"]) == 0
    assert capsys.readouterr().out == out  # the same part
    for number in ("4", "9"):  # all of the folder, which aren't random
        assert run([*given, "--images", number]) == 0
        out, err = capsys.readouterr()
        assert "4 images of COCO 2017 val;" in out and "no proof" in err


def test_panoptic_checkpoints_are_compared_by_pq(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """With the PNG files; without them, the message says what is missing."""
    model, processor = confident_segmenter(), DetrImageProcessor(size=SIZE)
    publish(monkeypatch, "someone/segmenter", PQ=100.0)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "segmenter")
    given = ["verify", str(tmp_path / "segmenter"), "--device", "cpu"]
    assert run([*given, "--coco", str(coco)]) == 1
    assert "annotations/panoptic_val2017.json" in capsys.readouterr().err
    file = write_panoptic(tmp_path / "data", model, processor)
    target = tmp_path / "panoptic" / "annotations"
    target.mkdir(parents=True)
    shutil.copy(file, target / "panoptic_val2017.json")
    shutil.copytree(file.parent / "segments", target / "panoptic_val2017")
    shutil.copytree(file.parent / "images", tmp_path / "panoptic" / "val2017")
    assert run([*given, "--coco", str(tmp_path / "panoptic")]) == 0
    assert "PQ 100.00, authors 100.0 (+0.00)" in capsys.readouterr().out


def test_names_without_coco_figures_are_refused(
    coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown models and models of other data, before anything is loaded; a folder of COCO 2014."""
    for name, message in [
        ("someone/other", "expected one of facebook/detr-resnet-50,"),
        ("microsoft/table-transformer-detection", "no figure on COCO"),
    ]:
        assert run(["verify", name, "--coco", str(coco)]) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "val2014").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").touch()
    with pytest.raises(SystemExit) as ended:
        run(["verify", "facebook/detr-resnet-50", "--coco", str(tmp_path)])
    assert ended.value.code == 2 and "instances_val2017.json" in capsys.readouterr().err


def test_names_of_stuff_are_complete(
    monkeypatch: pytest.MonkeyPatch, coco: Path, tmp_path: Path
) -> None:
    """Models with COCO's number of labels get COCO's names, some of which the Hub's lack."""
    from ..tiny import tiny_detector

    publish(monkeypatch, "someone/unnamed", AP=0.0)
    seen = []
    monkeypatch.setattr(
        "hf_detr.evaluation.evaluate.evaluate",
        lambda model, *others: seen.append(model.config.id2label) or {"AP": 0.0},
    )
    tiny_detector("detr", num_labels=91).save_pretrained(tmp_path / "unnamed")
    DetrImageProcessor(size=SIZE).save_pretrained(tmp_path / "unnamed")
    assert run(["verify", str(tmp_path / "unnamed"), "--coco", str(coco), "--device", "cpu"]) == 0
    assert seen[0][1] == "person" and seen[0][90] == "toothbrush"
