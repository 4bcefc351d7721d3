"""Detect objects in an image and write the picture with boxes.

    python examples/detect.py
    python examples/detect.py --model facebook/detr-resnet-50 --image my.jpg --threshold 0.7

Without --model it runs the small detector that comes with hf_detr, which knows ten kinds of
garments. Give a folder or a name on the Hub for other objects.
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw
from transformers import pipeline

from hf_detr import embedded_model_folder

IMAGE = Path(__file__).parent / "images" / "garments.jpg"
COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


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
    parser.add_argument("--image", type=Path, default=IMAGE)
    parser.add_argument(
        "--model",
        default=str(embedded_model_folder()),
        help="folder or name on the Hub; default: the garment detector that comes with hf_detr",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="least score, default 0.5")
    parser.add_argument("--output", type=Path, default=Path("outputs/detections.png"))
    arguments = parser.parse_args()

    detect = pipeline("object-detection", model=arguments.model)
    try:
        image = Image.open(arguments.image)
    except OSError as error:
        sys.exit(f"{arguments.image} can't be read as an image: {error}")
    detections = detect(image, threshold=arguments.threshold)
    for detection in detections:
        print(f"{detection['score']:.3f}  {detection['label']:12}  {detection['box']}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw(image, detections).save(arguments.output)
    print(f"{len(detections)} detections drawn into {arguments.output}")


if __name__ == "__main__":
    main()
