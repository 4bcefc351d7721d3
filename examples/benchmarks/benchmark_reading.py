"""Compare reading a large COCO file by hf_detr, pycocotools and hotcoco: time and peak memory.

    python examples/benchmarks/benchmark_reading.py --images 118287 --boxes 860001
    python examples/benchmarks/benchmark_reading.py --images 1000000 --boxes 10000000 --no-peers

The file is synthetic, and its images are empty files, because hf_detr looks whether they are
there. Each reader runs in fresh processes, in turn, and its sum of all boxes and classes has to be
that of the others. "first" is hf_detr without cache, "mapped" with it. Memory is the peak of the
process, and in brackets what reading added to the imports. With --processes 4, a second table has
what several processes add together that have all read the file, as the ranks of a training: the
increase of their proportional set size, in which shared memory counts once.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_timing import peak_memory

BLOCK = 100_000  # boxes that are written at once
MOST_XYWH = (300, 230, 300, 230)  # within images of 640 x 480, as in COCO


def write_file(file: Path, num_images: int, num_boxes: int, polygons: bool) -> None:
    """Write a COCO file with the keys of COCO's own files, and empty images beside it."""
    random = np.random.default_rng(0)
    with file.open("w", encoding="utf-8") as opened:
        opened.write('{"info": {}, "images": [')
        for image in range(num_images):
            name = f"{image:012d}.jpg"
            (file.parent / name).touch()
            record = {"license": 1, "file_name": name, "height": 480, "width": 640, "id": image}
            record["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
            opened.write((", " if image else "") + json.dumps(record))
        opened.write('], "annotations": [')
        for start in range(0, num_boxes, BLOCK):
            number = min(BLOCK, num_boxes - start)
            boxes = np.round(random.random((number, 4)) * MOST_XYWH + 2, 2).tolist()
            images = random.integers(0, num_images, number).tolist()
            classes = random.integers(1, 81, number).tolist()
            values = enumerate(zip(boxes, images, classes, strict=True), start + 1)
            texts = [text_of_object(*value, polygons) for value in values]
            opened.write((", " if start else "") + ", ".join(texts))
        categories = [{"id": i, "name": f"class {i}", "supercategory": "s"} for i in range(1, 81)]
        opened.write(f'], "categories": {json.dumps(categories)}}}')


def text_of_object(number: int, values: tuple[list[float], int, int], polygons: bool) -> str:
    """Return an annotation as JSON."""
    (x, y, w, h), image, category = values
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h] * 3
    segmentation = f'"segmentation": [{polygon}], ' if polygons else ""
    return (
        f'{{{segmentation}"area": {w * h:.4f}, "iscrowd": 0, "image_id": {image}, '
        f'"bbox": [{x}, {y}, {w}, {h}], "category_id": {category}, "id": {number}}}'
    )


def read_ours(file: Path) -> tuple[Any, list[float]]:
    """Read by hf_detr; return what was read, and sums that depend on all boxes and classes."""
    from hf_detr import read_coco

    dataset = read_coco(file, file.parent)
    table = dataset.table
    sums = [len(table.ids), *table.boxes_xywh.sum(0), (table.class_labels + 1).sum()]
    return dataset, sums


def read_peer(file: Path, library: str) -> tuple[Any, list[float]]:
    """Read by a class `COCO`; return the same."""
    if library == "pycocotools":
        from pycocotools.coco import COCO
    else:
        from hotcoco import COCO
    found = COCO(str(file))
    annotations = found.loadAnns(found.getAnnIds())
    boxes = np.array([annotation["bbox"] for annotation in annotations])
    classes = sum(annotation["category_id"] for annotation in annotations)
    return found, [len(annotations), *boxes.sum(0), classes]


def measure(reader: str, file: Path, waits: bool) -> None:
    """Import what a reader needs, read, and print the result as JSON: run in a fresh process."""
    import hf_detr  # noqa: F401  (its import isn't measured)

    def read() -> tuple[Any, list[float]]:
        return read_ours(file) if reader in ("first", "mapped") else read_peer(file, reader)

    if waits:
        print("ready", flush=True)
        input()
    start, cpu_start = time.perf_counter(), time.process_time()
    (held, sums), added = peak_memory(read)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    result = {"seconds": seconds, "cpu": cpu_seconds, "peak": peak, "added": added}
    print(json.dumps({**result, "sums": [float(value) for value in sums]}), flush=True)
    if waits:
        input()
    del held


def start(reader: str, file: Path, cache: str, *more: str) -> subprocess.Popen:
    """Start a fresh process that reads the file."""
    command = [sys.executable, __file__, "--reader", reader, "--file", str(file), *more]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "XDG_CACHE_HOME": cache}, **pipes)


def run(reader: str, file: Path, cache: str) -> dict:
    """Measure a reader in a fresh process."""
    if reader == "first":
        for table in Path(cache).rglob("*.table"):
            table.unlink()
    process = start(reader, file, cache)
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"{reader} has failed")
    return json.loads(output.splitlines()[-1])


def memory_together(reader: str, file: Path, cache: str, number: int, sums: list[float]) -> float:
    """Return the MiB that reading adds to a number of processes which hold the data together."""
    processes = [start(reader, file, cache, "--waits") for _ in range(number)]

    def total() -> float:
        files = [Path(f"/proc/{process.pid}/smaps_rollup") for process in processes]
        lines = [line for one in files for line in one.read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    for process in processes:
        process.stdout.readline()
    before = total()
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    # pycocotools prints what it does.
    outputs = (filter(lambda line: line[0] == "{", process.stdout) for process in processes)
    lines = [next(output, None) for output in outputs]
    if None in lines:
        sys.exit(f"{reader} has failed")
    added = total() - before
    for process in processes:
        process.communicate("\n")
    if not all(np.allclose(json.loads(line)["sums"], sums) for line in lines):
        sys.exit(f"{reader} has read something else than hf_detr")
    return added


def compare(file: Path, readers: list[str], rounds: int, processes: int) -> None:
    """Print the tables; refuse if the readers disagree."""
    results: dict[str, list[dict]] = {reader: [] for reader in readers}
    with tempfile.TemporaryDirectory() as cache:
        for _ in range(rounds):
            for reader in readers:
                results[reader].append(run(reader, file, cache))
                if not np.allclose(results[reader][-1]["sums"], results["first"][0]["sums"]):
                    sys.exit(f"{reader} has read something else than hf_detr")
        added = {
            reader: [
                memory_together(reader, file, cache, number, found[0]["sums"])
                for number in (1, processes)
            ]
            for reader, found in results.items()
            if processes and reader != "first"
        }
    print("| reader | seconds | CPU seconds | times hf_detr's first | peak MiB (added) |")
    print("|---|---|---|---|---|")
    middle = {
        reader: {key: statistics.median(r[key] for r in found) for key in found[0] if key != "sums"}
        for reader, found in results.items()
    }
    for reader, found in middle.items():
        ratio = found["cpu"] / middle["first"]["cpu"]
        print(
            f"| {reader} | {found['seconds']:.2f} | {found['cpu']:.2f} | {ratio:.3f} | "
            f"{found['peak']:.0f} ({found['added']:.0f}) |"
        )
    if processes:
        print(f"\n| reader | MiB added by 1 process | by {processes} together |\n|---|---|---|")
    for reader, (one, several) in added.items():
        print(f"| {reader} | {one:.0f} | {several:.0f} |")


def main() -> None:
    """Write the file and compare the readers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=860_001)
    parser.add_argument("--polygons", action="store_true", help="write segmentations, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small file, one round")
    parser.add_argument("--no-peers", action="store_true", help="only hf_detr")
    parser.add_argument("--folder", type=Path, help="where the file is written")
    parser.add_argument("--processes", type=int, default=0, help="that hold the data together")
    parser.add_argument("--reader", help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--waits", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        measure(options.reader, options.file, options.waits)
        return
    if options.quick:
        options.images, options.boxes, options.rounds = 1000, 8000, 1
    readers = ["first", "mapped"]
    if not options.no_peers:
        peers = ("pycocotools", "hotcoco")
        readers += [name for name in peers if importlib.util.find_spec(name)]
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        file = Path(folder) / "annotations.json"
        write_file(file, options.images, options.boxes, options.polygons)
        size = f"{file.stat().st_size / 1e6:.0f} MB"
        print(f"{options.images} images, {options.boxes} boxes, {size}; medians of fresh processes")
        compare(file, readers, options.rounds, options.processes)


if __name__ == "__main__":
    main()
