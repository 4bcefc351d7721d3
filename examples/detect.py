"""Detect objects in a photograph and write the picture with boxes.

    python examples/detect.py
    python examples/detect.py --model facebook/detr-resnet-50 --image my.jpg --threshold 0.7

Without --model it runs a small detector with random weights: it shows that everything works, but
its boxes mean nothing. Give a folder or a name on the Hub for real detections.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import ObjectDetectionPipeline, pipeline

from hf_detr import DetrConfig, DetrForObjectDetection, DetrImageProcessor

PHOTO = Path(__file__).parent / "images" / "coffee.jpg"
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def make_random_detector() -> ObjectDetectionPipeline:
    """A small DETR that has learned nothing, the same one every time."""
    torch.manual_seed(0)
    labels = {i: f"class {i}" for i in range(3)}
    config = DetrConfig(
        backbone="resnet18",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        num_queries=5,
        id2label=labels,
        label2id={name: i for i, name in labels.items()},
    )
    model = DetrForObjectDetection(config).eval()
    return pipeline("object-detection", model=model, image_processor=DetrImageProcessor())


def draw(image: Image.Image, detections: list[dict]) -> Image.Image:
    """A copy of the image with a box, class and score for every detection."""
    picture = image.convert("RGB")
    canvas = ImageDraw.Draw(picture)
    for index, detection in enumerate(detections):
        box, color = detection["box"], COLORS[index % len(COLORS)]
        corners = (box["xmin"], box["ymin"], box["xmax"], box["ymax"])
        canvas.rectangle(corners, outline=color, width=3)
        text = f"{detection['label']} {detection['score']:.2f}"
        place = (corners[0] + 4, corners[1] + 4)
        canvas.rectangle(canvas.textbbox(place, text), fill=color)
        canvas.text(place, text, fill="white")
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, default=PHOTO)
    parser.add_argument("--model", help="folder or name on the Hub; default: random weights")
    parser.add_argument("--threshold", type=float, help="least score; default 0.5, random: 0")
    parser.add_argument("--output", type=Path, default=Path("outputs/detections.png"))
    arguments = parser.parse_args()

    if arguments.model is None:
        print("No --model given: a small detector with RANDOM weights; its boxes mean nothing.")
        detect, threshold = make_random_detector(), 0.0
    else:
        detect, threshold = pipeline("object-detection", model=arguments.model), 0.5
    if arguments.threshold is not None:
        threshold = arguments.threshold

    try:
        image = Image.open(arguments.image)
    except OSError as error:
        sys.exit(f"{arguments.image} can't be read as an image: {error}")
    detections = detect(image, threshold=threshold)
    for detection in detections:
        print(f"{detection['score']:.3f}  {detection['label']:12}  {detection['box']}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, detections).save(arguments.output)
    print(f"{len(detections)} detections drawn into {arguments.output}")


if __name__ == "__main__":
    main()
