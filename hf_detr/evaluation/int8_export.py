"""Export a model as an int8 file of OpenVINO, if that keeps its AP on the user's data."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from ..data.dataset import DetectionDataset, as_detection_dataset
from ..data.streamed import StreamedDataset
from ..image_processing.image_processor import DetectionImageProcessor
from ..inference.export import (
    TOLERANCE,
    Graph,
    Run,
    check_target,
    export_model,
    keep_files,
)
from ..inference.openvino_export import load_openvino, quantise
from ..models.pretrained_model import DetectionPreTrainedModel
from .evaluate import evaluate
from .image_batches import load_images, load_rows

MAX_AP_DROP = 0.01
CALIBRATION_IMAGES = 100


@dataclass(frozen=True)
class Int8Report:
    """A description of the file that `export_int8` wrote.

    Attributes:
        path, inputs, outputs, num_bytes: as in `ExportReport`.
        ap_before, ap_after: `AP`, and `segm_AP` of masks, of the model and of the file.
        calibration_images: number of images from which ranges of values were measured.
    """

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ap_before: dict[str, float]
    ap_after: dict[str, float]
    calibration_images: int
    num_bytes: int


class FileModel(nn.Module):
    """A file's outputs in the form of the model that it was exported from, for `evaluate`.

    Args:
        model: the model.
        run: runs the file.
    """

    def __init__(self, model: DetectionPreTrainedModel, run: Run) -> None:
        super().__init__()
        self.config, self.device, self.dtype = model.config, model.device, torch.float32
        self.run, self.names = run, Graph(model).outputs

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> ModelOutput:
        """Predict for images (B, 3, H, W) and masks (B, H, W), 1 for real pixels."""
        outputs = self.run(*_file_inputs(pixel_values, pixel_mask))
        return ModelOutput(**dict(zip(self.names, outputs, strict=True)))


def export_int8(
    model: DetectionPreTrainedModel,
    path: str | os.PathLike[str],
    processor: DetectionImageProcessor,
    dataset: DetectionDataset | StreamedDataset,
    max_ap_drop: float = MAX_AP_DROP,
    calibration_images: int = CALIBRATION_IMAGES,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
    progress: bool = True,
) -> Int8Report:
    """Export a model to OpenVINO with backbone and the encoder's feed-forward networks in int8.

    The float32 file is first checked as by `export_model`. Then AP of the model and of the int8
    file are measured on the data set, with everything that isn't int8 in float32.

    Args:
        model: on the CPU, in float32, in any mode.
        path: ends with `.xml`; the weights are in a `.bin` file beside it.
        processor: prepares the images.
        dataset: as in `evaluate`; with masks, AP of masks is measured too.
        max_ap_drop: by how much AP, in [0, 1], may fall.
        calibration_images: largest number of images from which ranges of values are measured.
        tolerance: of the float32 file's outputs.
        overwrite: replace an existing file.
        progress: whether to show a progress bar of the evaluations on a terminal.

    Raises:
        ValueError: if AP falls by more, or can't be measured, or there are no calibration images;
            and as in `export_model`. Then nothing is written.
        FileExistsError: as in `export_model`.
        ImportError: if openvino or nncf is missing.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"{path} must end with .xml: int8 files are OpenVINO's.")
    check_target(path, overwrite)
    if importlib.util.find_spec("nncf") is None:
        raise ImportError("int8 needs the package nncf: pip install 'hf_detr[openvino]'.")
    if not isinstance(dataset, StreamedDataset):
        dataset = as_detection_dataset(dataset)
    images = CalibrationInputs(dataset, processor, calibration_images)
    iou_types = ("bbox", "segm") if dataset.masks else ("bbox",)
    options = {"iou_types": iou_types, "progress": progress}
    with TemporaryDirectory() as temporary:
        float_file = Path(temporary, "float32", path.name)
        int8_file = Path(temporary, "int8", path.name)
        exported = export_model(model, float_file, processor, tolerance=tolerance)
        before = _ap(evaluate(model, processor, dataset, **options))
        if min(before.values()) < 0:
            raise ValueError("the data set has no objects, so AP can't be measured.")
        int8_file.parent.mkdir()
        quantise(float_file, int8_file, Graph(model), images)
        after = _ap(
            evaluate(FileModel(model, load_openvino(int8_file)), processor, dataset, **options)
        )
        _check_drop(before, after, max_ap_drop)
        num_bytes = keep_files(int8_file.parent, path.parent)
    report = str(path), exported.inputs, exported.outputs, before, after, len(images), num_bytes
    return Int8Report(*report)


def _ap(metrics: dict) -> dict[str, float]:
    return {name: float(metrics[name]) for name in ("AP", "segm_AP") if name in metrics}


def _check_drop(before: dict[str, float], after: dict[str, float], max_ap_drop: float) -> None:
    for name, value in before.items():
        if not value - after[name] <= max_ap_drop:
            raise ValueError(
                f"{name} falls from {value:.4f} to {after[name]:.4f} in int8, by more than "
                f"{max_ap_drop} (--max-ap-drop); nothing was written. Export without int8."
            )


class CalibrationInputs:
    """Single images (1, 3, H, W) from all of a data set, or a stream's first, and masks (1, H, W).

    They are read when they are needed: a hundred photographs at a model's size take gigabytes.
    """

    def __init__(
        self,
        dataset: DetectionDataset | StreamedDataset,
        processor: DetectionImageProcessor,
        number: int,
    ) -> None:
        if number < 1:
            raise ValueError(f"calibration_images is {number}; expected at least 1, such as 100.")
        step = 1 if isinstance(dataset, StreamedDataset) else max(1, -(-len(dataset) // number))
        self._dataset, self._processor = dataset, processor
        self._chosen = range(0, len(dataset), step)[:number]

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        dataset, processor = self._dataset, self._processor
        if isinstance(dataset, StreamedDataset):
            loader = load_rows(dataset, processor, 1, 0, lambda part: None)
        else:
            loader = load_images(dataset.subset(self._chosen), processor, 1, 0)
        for _, _, packed in islice(loader, len(self)):
            inputs = packed.unpack(processor, "cpu", torch.contiguous_format)
            yield _file_inputs(inputs["pixel_values"], inputs.get("pixel_mask"))


def _file_inputs(pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if pixel_mask is None:
        pixel_mask = torch.ones_like(pixel_values[:, 0])
    return pixel_values.float(), pixel_mask.long()
