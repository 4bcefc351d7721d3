"""Detect objects in an image and write it with their boxes.

    python examples/detect.py
    python examples/detect.py --model facebook/detr-resnet-50 --image my.jpg --threshold 0.7

Without --model it runs the small detector in the package, which detects ten kinds of garments. Give
a folder or a name on the Hub for other objects. `hf-detr predict` does the same for many images.
"""

import argparse
import sys
from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForObjectDetection

from hf_detr import draw_predictions, embedded_model_folder, predict

IMAGE = Path(__file__).parent / "images" / "garments.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", default=str(IMAGE), help="file or http address")
    parser.add_argument(
        "--model",
        default=str(embedded_model_folder()),
        help="folder or name on the Hub; default: the garment detector in the package",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="least score, default 0.5")
    parser.add_argument("--output", type=Path, default=Path("outputs/detections.png"))
    arguments = parser.parse_args()

    model = AutoModelForObjectDetection.from_pretrained(arguments.model)
    processor = AutoImageProcessor.from_pretrained(arguments.model)
    try:
        (result,) = predict(model, processor, arguments.image, arguments.threshold)
    except ValueError as error:
        sys.exit(f"{arguments.image} can't be read as an image: {error}")
    names = model.config.id2label
    columns = (result[key].tolist() for key in ("scores", "labels", "boxes"))
    for score, label, box in zip(*columns, strict=True):
        print(f"{score:.3f}  {names[label]:12}  {[round(edge) for edge in box]}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    draw_predictions(arguments.image, result, names).save(arguments.output)
    print(f"{len(result['scores'])} detections drawn into {arguments.output}")


if __name__ == "__main__":
    main()
