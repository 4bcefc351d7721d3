"""Draw a detector's predictions, and its attention or sampling points.

    python examples/draw_plots.py
    python examples/draw_plots.py --model facebook/detr-resnet-50 --image my.jpg --threshold 0.7
    python examples/draw_plots.py --model FOLDER --images FOLDER --run trained

Attention is drawn as maps for DETR and Conditional DETR, as sampling points for Deformable DETR.
Without `--model`, both are drawn, by the two models in the package.
`--images` adds the positions that the object queries prefer, `--run` the curves of a training by
`hf-detr train`.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hf_detr import embedded_model_folder, plots

IMAGE = Path(__file__).parent / "images" / "garments.jpg"
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def draw_all(arguments: argparse.Namespace) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures."""
    model, processor, record = run(arguments.model or embedded_model_folder(), arguments.image)
    yield "detections", plots.draw_detections(record, threshold=arguments.threshold)
    if model.config.model_type == "deformable_detr":
        yield from draw_sampling(record, arguments)
    else:
        yield from draw_attention(record, arguments)
    if arguments.model is None:
        *_, other = run(embedded_model_folder(attention=True), arguments.image)
        yield from draw_attention(other, arguments)
    if arguments.images is not None:
        files = [f for f in sorted(arguments.images.iterdir()) if f.suffix.lower() in SUFFIXES]
        boxes = plots.query_boxes(model, processor, [str(file) for file in files[: arguments.most]])
        yield "query_slots", plots.draw_query_slots(boxes)
    if arguments.run is not None:
        history = plots.read_history(arguments.run)
        yield "training", plots.draw_training_curves(arguments.run / "losses.csv", history)


def run(name: str | Path, image: str) -> tuple[Any, Any, plots.AttentionRecord]:
    """Load a model and its image processor, and record its attention."""
    model = AutoModelForObjectDetection.from_pretrained(name)
    processor = AutoImageProcessor.from_pretrained(name)
    [record] = plots.record_attention(model, processor, image)
    return model, processor, record


def draw_sampling(
    record: plots.AttentionRecord, arguments: argparse.Namespace
) -> Iterator[tuple[str, Figure]]:
    """Yield plots of sampling points."""
    points, threshold = arguments.point, arguments.threshold
    yield "sampling_overview", plots.draw_sampling_overview(record, points, threshold=threshold)
    yield "sampling_encoder", plots.draw_encoder_sampling_points(record, points, threshold)
    yield "sampling_decoder", plots.draw_sampling_points(record, threshold=threshold)


def draw_attention(
    record: plots.AttentionRecord, arguments: argparse.Namespace
) -> Iterator[tuple[str, Figure]]:
    """Yield plots of attention over all pixels."""
    points, threshold = arguments.point, arguments.threshold
    yield "attention_encoder", plots.draw_encoder_attention(record, points, threshold)
    yield "attention_decoder", plots.draw_decoder_attention(record, threshold=threshold)
    yield "attention_heads", plots.draw_attention_heads(record, threshold=threshold)


def point(text: str) -> tuple[float, float]:
    """Read `x,y`."""
    x, y = text.split(",")
    return float(x), float(y)


def main() -> None:
    """Read the options and write the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default=str(IMAGE), help="file or http address")
    parser.add_argument(
        "--model", help="folder or name on the Hub; default: the two models in the package"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="least score, default 0.5")
    parser.add_argument(
        "--point",
        type=point,
        action="append",
        help="x,y in pixels, to draw its attention; repeatable",
    )
    parser.add_argument(
        "--images", type=Path, help="folder of images for the positions of object queries"
    )
    parser.add_argument(
        "--most", type=int, default=500, help="largest number of these images, default 500"
    )
    parser.add_argument("--run", type=Path, help="output folder of hf-detr train")
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder")
    parser.add_argument("--dpi", type=int, default=110)
    parser.add_argument(
        "--colors", type=int, help="reduce to this number, at most 256, for small files"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        for name, figure in draw_all(arguments):
            path = arguments.output / f"{name}.png"
            figure.savefig(path, dpi=arguments.dpi)
            if arguments.colors is not None:
                image = Image.open(path).convert("RGB")
                image.quantize(arguments.colors).save(path, optimize=True)
            print(path)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
