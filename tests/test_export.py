"""ONNX files of every variant run in onnxruntime at other sizes than they were exported with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.testing import assert_close

from hf_detr.detection_transformer import ObjectDetector

from .tiny import padded_batch, tiny_detector

pytest.importorskip("onnxscript", reason="ONNX export needs onnxscript")
onnxruntime = pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")

KINDS = {
    "detr": ("detr", {}),
    "conditional": ("conditional_detr", {}),
    "deformable": ("deformable_detr", {"encoder_layers": 1, "decoder_layers": 1}),
    "two-stage": (
        "deformable_detr",
        {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "with_box_refine": True,
            "two_stage": True,
            "two_stage_num_proposals": 7,
        },
    ),
}


class Predictions(nn.Module):
    """A detector whose outputs are two tensors, as graphs want them."""

    def __init__(self, detector: ObjectDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.detector(pixel_values, pixel_mask)
        return output.logits, output.pred_boxes


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporter's own making
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_with_dynamic_sizes(kind: str, tmp_path: Path) -> None:
    """Batch, height and width are free, padding is masked, no custom operator (1e-3)."""
    variant, options = KINDS[kind]
    model = Predictions(tiny_detector(variant, **options)).eval()
    dynamic = {
        "pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC},
        "pixel_mask": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC},
    }
    batch = padded_batch(2, 128, 160)
    program = torch.onnx.export(model, batch, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    path = tmp_path / "model.onnx"
    program.save(path)
    session = onnxruntime.InferenceSession(path)
    for size in [(1, 96, 96), (3, 224, 128), (2, 97, 131)]:
        pixel_values, pixel_mask = padded_batch(*size)
        inputs = {"pixel_values": pixel_values.numpy(), "pixel_mask": pixel_mask.numpy()}
        got = [torch.from_numpy(array) for array in session.run(None, inputs)]
        assert_close(got, list(model(pixel_values, pixel_mask)), atol=1e-3, rtol=0)
