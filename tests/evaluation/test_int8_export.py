"""Files in int8 are kept only if AP on the user's data is."""

import json
from pathlib import Path

import pytest
import torch
from datasets import IterableDataset
from torch.testing import assert_close

from hf_detr import DetectionDataset, DetrImageProcessor, StreamedDataset, read_coco
from hf_detr.evaluation.int8_export import CalibrationInputs, _check_drop, export_int8
from hf_detr_command_line import main as run

from ..some_data import entry, write_coco
from ..tiny import tiny_detector

PROCESSOR = DetrImageProcessor(size={"height": 64, "width": 96})
# Of the operations that can be quantised
MULTIPLYING = {"Convolution", "GroupConvolution", "MatMul"}
ENDED = 2  # exit status of wrong arguments


def some_detector():
    names = {0: "dog", 1: "car"}
    return tiny_detector("detr", encoder_layers=1, decoder_layers=1, id2label=names)


def names_in_int8(file: Path) -> set[str]:
    """Names of the operations in a file whose inputs are quantised."""
    import openvino

    return {
        target.get_node().get_friendly_name()
        for op in openvino.Core().read_model(file).get_ops()
        if op.get_type_name() == "FakeQuantize"
        for target in op.output(0).get_target_inputs()
        if target.get_node().get_type_name() in MULTIPLYING
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_int8_file(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Backbone and feed-forward are in int8, the rest isn't; AP before and after are reported."""
    pytest.importorskip("openvino", reason="OpenVINO export needs openvino")
    pytest.importorskip("nncf", reason="int8 needs nncf")
    write_coco(tmp_path, [entry(1), entry(2, image_id=2, category_id=18)])
    some_detector().save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    path = tmp_path / "int8" / "model.xml"
    given = [str(path), "--model", str(tmp_path / "model"), "--int8", "--json"]
    data = ["--calibration", str(tmp_path / "annotations.json"), "--images", f"{tmp_path}/images"]
    assert run(["export", *given, *data, "--max-ap-drop", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["calibration_images"] == 2 and report["path"] == str(path)
    assert {*report["ap_before"]} == {*report["ap_after"]} == {"AP"}
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.bin", "model.xml"]
    assert report["num_bytes"] == sum(file.stat().st_size for file in path.parent.iterdir())
    scoped = {name.split("/")[0] for name in names_in_int8(path) if name.startswith("__module.")}
    layer = "__module.model.model.encoder.layers.0"
    assert scoped == {f"{layer}.fc1", f"{layer}.fc2"}
    assert len(names_in_int8(path)) > 10  # convolutions, which have no names of modules


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
def test_loss_of_ap_is_refused(tmp_path: Path) -> None:
    """Nothing is left on the disk if AP falls too much; the error has both figures."""
    pytest.importorskip("openvino", reason="OpenVINO export needs openvino")
    pytest.importorskip("nncf", reason="int8 needs nncf")
    dataset = read_coco(*write_coco(tmp_path / "data", [entry(1)]))
    path = tmp_path / "int8" / "model.xml"
    with pytest.raises(
        ValueError, match=r"AP falls from 0.\d{4} to 0.\d{4} .* nothing was written"
    ):
        export_int8(some_detector(), path, PROCESSOR, dataset, max_ap_drop=-1.0, progress=False)
    assert not path.parent.exists()


def test_calibration_images(tmp_path: Path) -> None:
    """Calibration images are taken from all of a data set, and are the first of a stream."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1)], num_images=5))
    rows = [
        {"image": file.read_bytes(), "objects": {"bbox": [[10, 5, 20, 8]], "category": [0]}}
        for file in sorted((tmp_path / "images").iterdir())
    ]
    stream = StreamedDataset(
        IterableDataset.from_generator(lambda: iter(rows)), 5, "coco_xywh", {0: "dog"}
    )
    every = [pixels for pixels, _ in CalibrationInputs(dataset, PROCESSOR, 9)]
    assert len(every) == len(CalibrationInputs(dataset, PROCESSOR, 9)) == 5
    for source, expected in ((dataset, [0, 2, 4]), (stream, [0, 1, 2])):
        inputs = CalibrationInputs(source, PROCESSOR, 3)
        chosen = list(inputs)
        assert len(inputs) == len(list(inputs)) == 3
        assert_close([pixels for pixels, _ in chosen], [every[index] for index in expected])
        assert all(mask.dtype == torch.int64 and mask.all() for _, mask in chosen)


def test_calibration_images_are_read_when_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Protects memory: an image is prepared only when the one before it was used."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1)], num_images=3))
    opened, read = [], DetectionDataset.__getitem__
    monkeypatch.setattr(
        DetectionDataset, "__getitem__", lambda self, i: opened.append(i) or read(self, i)
    )
    inputs = iter(CalibrationInputs(dataset, PROCESSOR, 3))
    assert [(next(inputs), len(opened))[1] for _ in range(3)] == [1, 2, 3]


def test_calibration_needs_images(tmp_path: Path) -> None:
    """Protects from an error about a division, after the model was exported and evaluated."""
    dataset = read_coco(*write_coco(tmp_path, [entry(1)]))
    with pytest.raises(ValueError, match="calibration_images is 0; expected at least 1"):
        CalibrationInputs(dataset, PROCESSOR, 0)


def test_allowed_drop() -> None:
    """The drop of every AP counts; NaN is refused."""
    _check_drop({"AP": 0.5, "segm_AP": 0.4}, {"AP": 0.495, "segm_AP": 0.6}, 0.01)
    for after in ({"AP": 0.5, "segm_AP": 0.38}, {"AP": float("nan"), "segm_AP": 0.4}):
        with pytest.raises(ValueError, match="int8, by more than 0.01 .--max-ap-drop"):
            _check_drop({"AP": 0.5, "segm_AP": 0.4}, after, 0.01)


def test_help_names_the_data(capsys: pytest.CaptureFixture) -> None:
    """The options of the data set say `--calibration`, which is `--data` in other commands."""
    with pytest.raises(SystemExit):
        run(["export", "--help"])
    text = " ".join(capsys.readouterr().out.split())  # lines depend on the terminal
    assert "if --calibration is a COCO file" in text and "--data" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model.xml", "--calibration", "data"], "--calibration has no effect without --int8"),
        (["model.xml", "--split", "val"], "--split has no effect without --int8"),
        (["model.xml", "--max-ap-drop", "0.1"], "--max-ap-drop has no effect without --int8"),
        (["model.onnx", "--int8", "--calibration", "data"], "--int8 writes .xml files"),
        (["model.xml", "--int8"], "--int8 needs --calibration"),
        (["model.xml", "--int8", "--calibration", "nowhere", "--size", "9x9"], "--size can't"),
        (["model.xml", "--int8", "--calibration", "./nowhere"], "nowhere"),
        (["model.xml", "--int8", "--calibration", "x", "--max-ap-drop", "2"], "max-ap-drop is 2.0"),
    ],
)
def test_wrong_arguments(
    given: list[str],
    message: str,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Options that contradict each other are refused before a model is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(SystemExit) as ended:
        run(["export", *given])
    assert ended.value.code == ENDED and message in capsys.readouterr().err
