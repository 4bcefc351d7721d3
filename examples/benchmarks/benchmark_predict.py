"""Images per second and memory of `hf-detr predict`, beside transformers' pipeline.

    python examples/benchmarks/benchmark_predict.py --images 400 --workers 0 2

Every row is a process of its own, which loads the detector of the package, predicts a few images
as a warm-up, and then all JPEG files of a folder. The rows take turns; the table has medians, the
memory at most (all processes of the row), and what the second half of the images added to it.
transformers' row is `pipeline("object-detection")` of its own class with the same weights.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

BATCH_SIZE = 8
WARM_UP = 2 * BATCH_SIZE  # images


def main() -> None:
    """Read the options; write images; measure each row in turn; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("H", "W"))
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of torch in each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, few small images")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.images, options.size, options.rounds, options.workers = 48, (60, 80), 1, [1]
    if options.row:
        measure_row(options.row[0], int(options.row[1]), options)
        return
    rows = [(name, count) for name in ("hf-detr", "transformers") for count in options.workers]
    results: dict[tuple[str, int], list[dict[str, float]]] = {row: [] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images", options.images, options.size)
        for _ in range(options.rounds):
            for row in rows:
                results[row].append(run_row(row, folder, options))
    print(
        f"{options.images} JPEG files of {options.size}, batches of {BATCH_SIZE}, {options.threads}"
    )
    print("thread(s) of torch, medians of", options.rounds, "round(s)\n")
    print("| | workers | images / s | MiB at most | MiB added in the second half |")
    print("|---|---|---|---|---|")
    for (name, count), found in results.items():
        columns = [statistics.median(one[key] for one in found) for key in found[0]]
        print(f"| {name} | {count} | {columns[0]:.1f} | {columns[1]:.0f} | {columns[2]:.1f} |")


def write_images(folder: Path, count: int, size_hw: tuple[int, int]) -> None:
    """Write smooth noise, which JPEG compresses as it does photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        small = random.integers(0, 256, (size_hw[0] // 8, size_hw[1] // 8, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(small).resize(size_hw[::-1], PIL.Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06}.jpg", quality=90)


def run_row(row: tuple[str, int], folder: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure a row in a new process."""
    command = [sys.executable, __file__, "--row", row[0], str(row[1]), "--folder", folder]
    threads = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    register = {"HF_DETR_REGISTER": str(int(row[0] == "hf-detr"))}
    environment = {**os.environ, **threads, **register}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_row(name: str, workers: int, options: argparse.Namespace) -> None:
    """Print the images per second and the memory of a row."""
    files = sorted((Path(options.folder) / "images").iterdir())
    peaks, is_done, times = [0.0], threading.Event(), []
    halfway: list[float] = []

    def on_image() -> None:
        times.append(time.perf_counter())
        if len(times) == WARM_UP + len(files) // 2:
            halfway.append(peaks[0])

    watch = threading.Thread(target=watch_memory, args=(peaks, is_done))
    watch.start()
    run = predict_with_hf_detr if name == "hf-detr" else predict_with_transformers
    try:
        start = run(files, workers, Path(options.folder) / "output", on_image)
    finally:
        is_done.set()
        watch.join()
    assert len(times) == WARM_UP + len(files)
    rate, added = len(files) / (times[-1] - start), peaks[0] - halfway[0]
    print("\n" + json.dumps({"rate": rate, "peak": peaks[0], "added": added}))


def predict_with_hf_detr(
    files: list[Path], workers: int, output: Path, on_image: Callable[[], None]
) -> float:
    """Run `hf-detr predict` on some files, and then on all; return when the second run started."""
    import hf_detr  # noqa: F401
    from hf_detr.inference.prediction_lines import PredictionLines
    from hf_detr_command_line import main as hf_detr_main

    add = PredictionLines.add

    def add_and_tell(lines: PredictionLines, record: dict[str, Any]) -> None:
        add(lines, record)
        on_image()

    PredictionLines.add = add_and_tell
    given = ["--output", str(output), "--no-draw", "--format", "jsonl", "--device", "cpu"]
    given += ["--batch-size", str(BATCH_SIZE), "--workers", str(workers)]
    with contextlib.redirect_stdout(sys.stderr):
        hf_detr_main(["predict", *map(str, files[:WARM_UP]), *given])
        start = time.perf_counter()
        hf_detr_main(["predict", str(files[0].parent), *given])
    return start


def predict_with_transformers(
    files: list[Path], workers: int, output: Path, on_image: Callable[[], None]
) -> float:
    """Run transformers' pipeline in the same way, and write lines of its results."""
    import datasets
    from transformers import pipeline
    from transformers.pipelines.pt_utils import KeyDataset

    model = Path(__file__).parents[2] / "hf_detr" / "garments"
    detect = pipeline("object-detection", model=str(model), device="cpu")
    output.mkdir(exist_ok=True)
    with (output / "transformers.jsonl").open("w", encoding="utf-8") as lines:
        for some in (files[:WARM_UP], files):
            start = time.perf_counter()
            names = datasets.Dataset.from_dict({"file": [str(file) for file in some]})
            inputs = KeyDataset(names, "file")
            for result in detect(inputs, batch_size=BATCH_SIZE, num_workers=workers):
                lines.write(json.dumps(result) + "\n")
                on_image()
    return start


def watch_memory(peaks: list[float], is_done: threading.Event) -> None:
    """Keep the largest memory of this process and its children so far, in MiB (Linux)."""
    while not is_done.wait(0.05):
        peaks[0] = max(peaks[0], sum(map(proportional_memory, family())))


def family() -> list[int]:
    """This process and its children."""
    children = Path(f"/proc/{os.getpid()}/task")
    found = [int(pid) for file in children.glob("*/children") for pid in file.read_text().split()]
    return [os.getpid(), *found]


def proportional_memory(pid: int) -> float:
    """MiB of a process, where what processes share is divided by their number."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has just ended
        return 0.0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


if __name__ == "__main__":
    main()
