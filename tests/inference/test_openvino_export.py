"""OpenVINO files of every variant run at other sizes; what is quantised in them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_detr import DetrImageProcessor
from hf_detr.inference.export import Graph, export_model, samples_points
from hf_detr.inference.openvino_export import _operations_to_quantise
from hf_detr_command_line import main as run

from ..tiny import SAMPLED, WITH_HEADS, class_of, padded_batch, tiny_config, tiny_detector
from .test_export import KINDS


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("kind", ["detr", "deformable", "dino"])
def test_openvino_with_dynamic_sizes(kind: str, tmp_path: Path) -> None:
    """Batch, height and width are free, inputs and outputs have names (1e-3)."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO export needs openvino")
    variant, options = KINDS[kind]
    model, path = tiny_detector(variant, **options), tmp_path / "model.xml"
    report = export_model(model, path, DetrImageProcessor(size={"height": 160, "width": 64}))
    assert report.largest_difference < 1e-3 and (1, 160, 64) in report.checked_shapes
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    pixel_values, pixel_mask = padded_batch(3, 131, 77)  # a size that the export didn't check
    results = compiled({"pixel_mask": pixel_mask.numpy(), "pixel_values": pixel_values.numpy()})
    got = [torch.from_numpy(results[name]) for name in report.outputs]
    assert_close(got, list(Graph(model)(pixel_values, pixel_mask)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(("variant", "kind"), WITH_HEADS)
def test_only_backbone_and_feed_forward_are_quantised(variant: str, kind: str) -> None:
    """Protects AP: attention, decoder, heads and masks stay in float32 in every variant."""
    config = tiny_config(variant, encoder_attention_heads=8)  # as the mask head needs
    graph = Graph(class_of(variant, kind)(config))
    is_quantised = _operations_to_quantise(graph)
    layers = [
        name for name, module in graph.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    chosen = {
        name: is_quantised("MatMul", f"__module.{name}/aten::linear/MatMul") for name in layers
    }
    expected = {
        name: ".backbone." in name or (".encoder." in name and name.endswith((".fc1", ".fc2")))
        for name in layers
    }
    assert chosen == expected and {*chosen.values()} == {True, False}
    assert is_quantised("GroupConvolution", "Multiply_7") and not is_quantised("MatMul", "MatMul_7")
    assert not is_quantised("Convolution", "__module.model.mask_head.lay1/Convolution")


def test_refusals(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights aren't overwritten, and a missing package is named."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = tiny_detector("detr", encoder_layers=1, decoder_layers=1)
    with pytest.raises(ImportError, match=r"package openvino: pip install 'hf_detr\[openvino\]'"):
        export_model(model, tmp_path / "model.xml")
    weights = tmp_path / "model.bin"
    weights.write_text("of something else")
    with pytest.raises(FileExistsError, match="model.bin exists; --overwrite"):
        export_model(model, tmp_path / "model.xml")
    assert [*tmp_path.iterdir()] == [weights]
    with pytest.raises(SystemExit) as ended:
        run(["export", str(tmp_path / "model.xml")])
    assert ended.value.code == 2 and "hf_detr[openvino]" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of openvino
def test_half_precision_is_refused(tmp_path: Path) -> None:
    """A model in bfloat16 is refused with what to do."""
    pytest.importorskip("openvino", reason="OpenVINO export needs openvino")
    model = tiny_detector("detr", encoder_layers=1, decoder_layers=1).bfloat16()
    with pytest.raises(ValueError, match="bfloat16: OpenVINO needs float32 .--dtype float32"):
        export_model(model, tmp_path / "model.xml")
    assert not [*tmp_path.iterdir()]


def test_models_with_a_compiled_operator(variant: str) -> None:
    """The command's advice is for those whose operator a file can't hold."""
    assert samples_points(tiny_detector(variant)) == (variant in SAMPLED)
