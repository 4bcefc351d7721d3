"""Export models to files that run without this package: ONNX, OpenVINO, `.pt2` of torch.export.

A file is kept only if its outputs equal the model's for other batches than it was exported with:
padded ones and, if height and width are free, other sizes, including the image processor's.
"""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers.image_utils import SizeDict

from ..atomic_saving import atomic_folder
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.image_settings import resized_hw
from ..models.pretrained_model import DetectionPreTrainedModel
from .openvino_export import convert_to_openvino, load_openvino, save_openvino
from .prediction import in_eval_mode
from .same_padding import same_padding_of_any_size

# Each ending's packages, and the extra that installs them
PACKAGES = {
    ".onnx": (("onnx", "onnxscript", "onnxruntime"), "export"),
    ".pt2": ((), ""),
    ".xml": (("openvino",), "openvino"),
}
INPUTS = ("pixel_values", "pixel_mask")
MOST_SWAPPED = 0.05  # of the queries of models that rank proposals
TOLERANCE = 1e-3
EXPORTED_HW = (128, 160)
CHECKED_SHAPES = ((1, 96, 96), (3, 224, 128), (2, 97, 131))  # batch, height, width
PHOTO_HW = (480, 640)

Run = Callable[[Tensor, Tensor], list[Tensor]]
Load = Callable[[Path], Run]


@dataclass(frozen=True)
class ExportReport:
    """A description of the file that `export_model` wrote."""

    path: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_difference: float  # from the model's outputs; see `MOST_SWAPPED`
    checked_shapes: tuple[tuple[int, int, int], ...]  # (batch, height, width)
    num_bytes: int


class Graph(nn.Module):
    """A model whose outputs are a tuple of tensors, as exporters need them."""

    def __init__(self, model: DetectionPreTrainedModel) -> None:
        super().__init__()
        self.model = model

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs; only segmentation models have `pred_masks`."""
        masks = ("pred_masks",) if hasattr(self.model, "mask_head") else ()
        return ("logits", "pred_boxes", *masks)

    def example(self, batch_size: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Make random images and their mask; all but the first are padded by different amounts."""
        generator, channels = torch.Generator().manual_seed(0), self.model.config.num_channels
        pixel_values = torch.randn(batch_size, channels, height, width, generator=generator)
        pixel_mask = torch.ones(batch_size, height, width, dtype=torch.long)
        for image in range(1, batch_size):
            pixel_mask[image, height - min(10 * image, height // 2) :] = 0
            pixel_mask[image, :, width - min(7 * image, width // 2) :] = 0
        return pixel_values * pixel_mask[:, None], pixel_mask

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> tuple[Tensor, ...]:
        """Predict for images (B, C, H, W) and masks (B, H, W) int64, 1 for real pixels."""
        output = self.model(pixel_values, pixel_mask)
        return tuple(output[name] for name in self.outputs)


@torch.no_grad()
def export_model(
    model: DetectionPreTrainedModel,
    path: str | os.PathLike[str],
    processor: DetectionImageProcessor | None = None,
    fixed_hw: tuple[int, int] | None = None,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> ExportReport:
    """Export a model for any batch size, height and width, and check the file.

    Its inputs are `pixel_values` (B, C, H, W) and `pixel_mask` (B, H, W) int64, its outputs
    `logits`, `pred_boxes` and, for segmentation models, `pred_masks`.

    Args:
        model: on the CPU, in any mode.
        path: ends with `.onnx` (needs onnx, onnxscript and onnxruntime), `.xml` (needs openvino;
            the weights are in a `.bin` file beside it) or `.pt2`.
        processor: the size to which it resizes photos is checked too.
        fixed_hw: the only height and width that the graph accepts; smaller images are padded to it.
        tolerance: largest allowed difference from the model's outputs.
        overwrite: replace an existing file.

    Raises:
        ValueError: for another ending, if the model can't be exported, or not with free height and
            width, and if the outputs differ; then nothing is written.
        FileExistsError: if the file exists and `overwrite` isn't set.
        ImportError: if the packages for ONNX or OpenVINO are missing.
    """
    path = Path(path)
    check_target(path, overwrite)
    if model.device.type != "cpu":
        raise ValueError(f"the model is on {model.device}; move it to the CPU to export it.")
    export, load = EXPORTERS[path.suffix]
    graph, shapes = Graph(model), _shapes_to_check(processor, fixed_hw)
    # To torch.export sizes are formulas; in OpenVINO the file computes them.
    has_formulas = fixed_hw is None and path.suffix != ".xml"
    with in_eval_mode(graph), TemporaryDirectory() as temporary:
        file = Path(temporary, path.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own; the check below says more
            with same_padding_of_any_size(model) if has_formulas else nullcontext():
                try:
                    export(graph, file, fixed_hw)
                    run = load(file)
                except Exception as error:  # exporters raise many kinds
                    raise ValueError(
                        f"the model can't be exported in {model.dtype}: {str(error)[:1000]}"
                    ) from error
        difference = _largest_difference(graph, run, shapes)
        if not difference <= tolerance:  # true for NaN too
            raise ValueError(
                f"the exported graph's outputs differ from the model's by up to {difference:.2g}, "
                f"more than {tolerance:.2g}; nothing was written."
            )
        num_bytes = keep_files(file.parent, path.parent)
    return ExportReport(str(path), INPUTS, graph.outputs, difference, shapes, num_bytes)


def check_target(path: Path, overwrite: bool) -> None:
    """Check a file to write.

    Raises:
        ValueError, FileExistsError, ImportError: as in `export_model`.
    """
    if path.suffix not in PACKAGES:
        raise ValueError(f"{path} must end with {' or '.join(PACKAGES)}.")
    files = (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
    for file in files:
        if file.exists() and not overwrite:
            raise FileExistsError(f"{file} exists; --overwrite (overwrite=True) replaces it.")
    packages, extra = PACKAGES[path.suffix]
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{path.suffix} files need the package {package}: pip install 'hf_detr[{extra}]'."
            )


def keep_files(written: Path, target: Path) -> int:
    """Copy complete files to their folder, all or none; return their size in bytes."""
    with atomic_folder(target) as folder:  # weights can be in a file of their own
        shutil.copytree(written, folder, dirs_exist_ok=True)
    return sum(file.stat().st_size for file in written.iterdir())


def samples_points(model: nn.Module) -> bool:
    """Whether a model has the operator that is compiled here, but not in files."""
    return any(getattr(module, "samples_points", False) for module in model.modules())


def _shapes_to_check(
    processor: DetectionImageProcessor | None, fixed_hw: tuple[int, int] | None
) -> tuple[tuple[int, int, int], ...]:
    if fixed_hw is not None:
        return (1, *fixed_hw), (3, *fixed_hw)
    if processor is None:
        return CHECKED_SHAPES
    return *CHECKED_SHAPES, (1, *resized_hw(PHOTO_HW, SizeDict(**dict(processor.size))))


def _program(graph: Graph, fixed_hw: tuple[int, int] | None) -> torch.export.ExportedProgram:
    axes = {"pixel_values": (0, 2, 3), "pixel_mask": (0, 1, 2)}
    free = 3 if fixed_hw is None else 1
    shapes = {name: dict.fromkeys(numbers[:free], Dim.DYNAMIC) for name, numbers in axes.items()}
    batch = graph.example(2, *(fixed_hw or EXPORTED_HW))
    return torch.export.export(graph, batch, dynamic_shapes=shapes, strict=False)


def _export_onnx(graph: Graph, path: Path, fixed_hw: tuple[int, int] | None) -> None:
    names = {"input_names": INPUTS, "output_names": graph.outputs}
    program = _program(graph, fixed_hw)  # the ONNX exporter's own fails for some padding
    torch.onnx.export(program, dynamo=True, verbose=False, **names).save(path)


def _load_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*batch: Tensor) -> list[Tensor]:
        inputs = {name: tensor.numpy() for name, tensor in zip(INPUTS, batch, strict=True)}
        return [torch.from_numpy(array) for array in session.run(None, inputs)]

    return run


def _export(graph: Graph, path: Path, fixed_hw: tuple[int, int] | None) -> None:
    torch.export.save(_program(graph, fixed_hw), path)


def _load(path: Path) -> Run:
    module = torch.export.load(path).module()
    return lambda *batch: list(module(*batch))


def _export_openvino(graph: Graph, path: Path, fixed_hw: tuple[int, int] | None) -> None:
    batch, names = graph.example(2, *(fixed_hw or EXPORTED_HW)), (INPUTS, graph.outputs)
    save_openvino(convert_to_openvino(graph, batch, names, fixed_hw), path)


# How a file of each ending is written, and how it is loaded for the check
EXPORTERS: dict[str, tuple[Callable[[Graph, Path, tuple[int, int] | None], None], Load]] = {
    ".onnx": (_export_onnx, _load_onnx),
    ".pt2": (_export, _load),
    ".xml": (_export_openvino, load_openvino),
}


def _largest_difference(graph: Graph, run: Run, shapes: tuple[tuple[int, int, int], ...]) -> float:
    """Return the largest difference of outputs, NaN if the model or the file gives NaN.

    Where queries start from the encoder's best proposals, a share of them is left out: rounding
    changes the order of proposals that are nearly equal, and with it single queries completely.
    """
    largest = torch.zeros(())
    for shape in shapes:
        batch = graph.example(*shape)
        output = graph.model(*batch)
        counted = 1 if output.enc_outputs_class is None else 1 - MOST_SWAPPED
        for name, got in zip(graph.outputs, run(*batch), strict=True):
            expected = output[name]
            if got.shape != expected.shape:
                raise ValueError(
                    f"the exported graph gives {name} of shape {tuple(got.shape)} for a batch of "
                    f"{shape}; expected {tuple(expected.shape)}; nothing was written."
                )
            differences = (got.float() - expected.float()).abs()
            differences = differences.transpose(0, 1).flatten(1).amax(1)  # (Q,)
            largest = torch.maximum(largest, differences.quantile(counted))  # keeps NaN
    return float(largest)
