"""Find objects in the images of a folder on a cluster, with Ray Data.

    pip install 'ray[data]'
    python examples/predict_with_ray.py s3://bucket/photos --output s3://bucket/predictions \
        --actors 8 --gpus 1

Ray reads the files where there is room, gives batches of them to actors, which have a model each,
and writes the results as Parquet. One machine without a cluster is started as one.
"""

import argparse
import io
from functools import partial
from typing import Any

import numpy as np
import PIL.Image

from hf_detr import stream_predictions
from hf_detr.inference.model_loading import load_model


class FindObjects:
    """Finds objects in batches of image files: a callable class, as `map_batches` takes it."""

    def __init__(self, model: str | None = None, threshold: float = 0.5) -> None:
        self.model, self.processor = load_model(model)  # once in every actor
        self.threshold = threshold

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        """Turn columns `bytes` and `path` into columns of results, one row per image."""
        errors: dict[int, Exception] = {}
        files = [io.BytesIO(content) for content in batch["bytes"]]
        images = [partial(PIL.Image.open, file) for file in files]  # called in threads
        found = dict(
            stream_predictions(
                *(self.model, self.processor, images, self.threshold, len(images)),
                on_bad_image=errors.__setitem__,
                num_workers=2,
            )
        )
        rows = range(len(images))
        columns = {"scores": [], "labels": [], "boxes": []}
        for name, column in columns.items():
            column += [found[row][name].tolist() if row in found else [] for row in rows]
        problems = [str(errors[row]) if row in errors else "" for row in rows]
        return {"file": list(batch["path"]), **columns, "error": problems}


def main() -> None:
    """Read the options, and run the model on all images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", help="folders or files, also of a storage")
    parser.add_argument("--output", required=True, help="folder of the Parquet files")
    parser.add_argument("--model", help="folder or name on the Hub; default: the package's")
    parser.add_argument("--threshold", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--actors", type=int, default=1, help="copies of the model, default 1")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each copy, default 0")
    options = parser.parse_args()
    import ray

    (
        ray.data.read_binary_files(options.images, include_paths=True)
        .map_batches(
            FindObjects,
            fn_constructor_args=(options.model, options.threshold),
            batch_size=options.batch_size,
            compute=ray.data.ActorPoolStrategy(size=options.actors),
            num_gpus=options.gpus,
        )
        .write_parquet(options.output)
    )


if __name__ == "__main__":
    main()
