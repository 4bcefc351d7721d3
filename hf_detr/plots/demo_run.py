"""A run of the demo: a model's outputs for an uploaded image, or the error in words."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..inference.drawing import make_picture
from ..inference.model_loading import load_model

ALERT = "⚠️ "  # before the message of an error


@dataclass(frozen=True)
class Run:
    """A model's outputs for an image, before any threshold."""

    model: Any
    processor: Any
    picture: Image.Image
    outputs: Any


@lru_cache(maxsize=3)  # the two that come along, and another one
def load(name: str) -> tuple[Any, Any]:
    """A model and its image processor, kept for the next image."""
    return load_model(name)


def read_upload(path: str) -> Image.Image:
    """The upright RGB image in an uploaded file.

    Raises:
        ValueError: if it can't be read; the message has the file's name, not its place here.
    """
    name = Path(path).name
    try:
        file = Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{name} can't be read as an image: it is damaged or too large, or of another format "
            "than JPEG, PNG, WebP and others that PIL reads."
        ) from error
    with file:
        try:
            return make_picture(file)
        except ValueError as error:
            raise ValueError(f"{name} can't be read: {error}") from error


def look(name: str | None, path: str | None) -> tuple[Run | None, str]:
    """Run the model of that name on an image file; return a line on the run, or the error."""
    if not path or not name:
        return None, "Choose a model, and drop an image."
    try:
        model, processor = load(name.strip())
    except (ValueError, OSError) as error:
        return None, f"{ALERT}The model {name} can't be loaded: {error}"
    try:
        picture = read_upload(path)
        start = time.perf_counter()
        with torch.no_grad():
            inputs = processor(picture, return_tensors="pt")
            outputs = model(**inputs.to(model.device, model.dtype))
    except (ValueError, TypeError, OSError) as error:
        return None, f"{ALERT}{error}"
    seconds, millions = time.perf_counter() - start, model.num_parameters() / 1e6
    who = f"{type(model).__name__}, {millions:.1f} million parameters"
    size = f"{picture.width} × {picture.height} pixels"
    return Run(model, processor, picture, outputs), f"{who}: {size} in {seconds:.2f} s"
