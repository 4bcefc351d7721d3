"""Lines of several processes become those of one: all of them, in the order of the images."""

import json
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import pytest

from hf_detr.inference.image_inputs import ImageInputs
from hf_detr.inference.prediction_lines import PredictionLines, complete_run, write_options
from hf_detr.inference.prediction_shards import (
    check_whole,
    find_shards,
    merge_shards,
    read_shards,
    shard_file,
)

from ..some_data import write_image
from .test_image_inputs import write_tar


def write_part(
    folder: Path, inputs: ImageInputs, process: int, num_processes: int, **options: object
) -> PredictionLines:
    """Write the lines of a process, out of order within groups of four."""
    images = list(enumerate(inputs.part(process, num_processes)))
    file = shard_file(folder, process, num_processes)
    lines = PredictionLines(file, 4, {"--threshold": 0.5, **options})
    for start in range(0, len(images), 4):
        for index, image in reversed(images[start : start + 4]):
            is_torn = "torn" in image.name
            value = {"error": f"image {index} is torn"} if is_torn else {"objects": []}
            lines.add({"index": index, "position": image.position, "file": image.name, **value})
    lines.complete(names={"0": "cat"})
    lines.close()
    return lines


def merged(folder: Path) -> PredictionLines:
    return merge_shards(folder, *read_shards(find_shards(folder)))


@pytest.fixture
def inputs(tmp_path: Path) -> ImageInputs:
    """Files and tars: of many images, of one and of none."""
    tars = {"a": [f"{n}.jpg" for n in range(9)], "b": ["torn.jpg"], "c": ["notes.txt"]}
    names: list[str] = []
    for tar, members in tars.items():
        names += [str(write_image(tmp_path / "photos" / f"{tar}{n}.png")) for n in range(5)]
        names += [str(write_tar(tmp_path / f"{tar}.tar", dict.fromkeys(members, b"")))]
    return ImageInputs(names)


@pytest.mark.parametrize("num_processes", [2, 3, 7, 30])
def test_order_is_that_of_the_images(
    inputs: ImageInputs, tmp_path: Path, num_processes: int
) -> None:
    """Tars have any number of images, and processes can have none."""
    for process in range(num_processes):
        write_part(tmp_path / "out", inputs, process, num_processes)
    lines = merged(tmp_path / "out")
    names = [image.name for image in inputs]
    assert len(names) == 25
    records = list(lines.records())
    assert [record["file"] for record in records] == names
    assert [record["index"] for record in records] == list(range(25))
    assert all("position" not in record for record in records)
    [torn] = [record for record in records if "error" in record]
    assert torn["error"] == f"image {torn['index']} is torn"
    assert (lines.num_results, lines.num_failures) == (24, 1)
    said = {"group_size": 4, "names": {"0": "cat"}, "merged": num_processes}
    assert complete_run(tmp_path / "out" / "predictions.jsonl") == ({"--threshold": 0.5}, said)


def test_lines_of_images_that_were_tried_again(inputs: ImageInputs, tmp_path: Path) -> None:
    """The last line of an image is merged."""
    for process in range(2):
        write_part(tmp_path, inputs, process, 2)
    torn = next(image for image in inputs if "torn" in image.name)
    file = shard_file(tmp_path, torn.position % 2, 2)
    lines = PredictionLines(file, 4, {"--threshold": 0.5}, resume=True, retry=True)
    names = (image.name for image in inputs.part(torn.position % 2, 2))
    [index] = lines.failed(names)
    record = {"index": index, "position": torn.position, "file": torn.name, "objects": [1]}
    lines.add(record)
    lines.complete(names={"0": "cat"})
    lines.close()
    records = list(merged(tmp_path).records())
    assert len(records) == 25 and not any("error" in record for record in records)
    assert [record["objects"] for record in records if record["file"] == torn.name] == [[1]]


def test_what_is_missing_is_named(inputs: ImageInputs, tmp_path: Path) -> None:
    """Nothing is merged without all results of one run."""

    def refused(expected: str) -> None:
        with pytest.raises(ValueError, match=expected):
            merged(tmp_path)
        assert not (tmp_path / "predictions.jsonl").exists()

    refused("no results of several processes")
    for process in (0, 2):
        write_part(tmp_path, inputs, process, 3)
    refused("results of 2 of 3 processes; predictions-00002-of-00003.jsonl is missing")
    write_part(tmp_path, inputs, 1, 3)
    options = tmp_path / "predictions-00002-of-00003.run.json"
    whole = options.read_text()
    options.write_text(json.dumps({"--threshold": 0.5}))
    refused("00002-of-00003.jsonl isn't complete: .* with --resume")
    options.write_text(whole.replace("0.5", "0.25"))
    refused("00001-of-.* and .*00002-of-.* with different options: --threshold")
    options.write_text(whole.replace("--threshold", "--other"))
    refused("with different options: --threshold, --other")
    options.write_text(whole)
    write_part(tmp_path, inputs, 0, 2)
    refused("results of runs with 2 and 3 processes; remove")
    (tmp_path / "predictions-00001-of-00002.jsonl").unlink()
    assert merged(tmp_path).num_results == 24


def test_run_of_one_process_is_kept(inputs: ImageInputs, tmp_path: Path) -> None:
    """Only lines that were merged before are replaced, also by a merge that was killed."""
    for process in range(2):
        write_part(tmp_path, inputs, process, 2)
    for _ in range(2):
        check_whole(tmp_path)
        merged(tmp_path)
    (tmp_path / "predictions.run.json").unlink()
    check_whole(tmp_path)
    write_part(tmp_path, inputs, 0, 1)
    with pytest.raises(ValueError, match="of a run of one process, and merging would replace it"):
        check_whole(tmp_path)
    write_options(tmp_path / "predictions.jsonl", {"--threshold": 0.5})  # it is still running
    with pytest.raises(ValueError, match=r"Move it and predictions\.run\.json"):
        check_whole(tmp_path)


def test_memory_is_constant(tmp_path: Path) -> None:
    """It doesn't grow with the number of images: neither their names nor results are kept."""

    def peak(names: Sequence[str]) -> int:
        for process in range(2):
            lines = PredictionLines(shard_file(tmp_path, process, 2), 4, {})
            for index, name in enumerate(names):
                value = {"position": 2 * index + process, "file": name, "objects": [name]}
                lines.add({"index": index, **value})
            lines.complete()
            lines.close()
        tracemalloc.start()
        try:
            merged(tmp_path)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak([f"{number:01000}" for number in range(50)])
    assert peak([f"{number:01000}" for number in range(500)]) < few + 200_000
