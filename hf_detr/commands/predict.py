"""Find objects in images; write images with the objects drawn, and JSON or other formats.

predictions.jsonl gets a line of JSON as soon as an image is done, which stays if the process is
killed; --resume continues it, and --retry-failed also tries failed images again. With up to 1,000
files or addresses, the objects are also drawn, and predictions.json has all results in the end.
With more images, or with lists, tars, data sets and storages, whose number isn't known, only --draw
and --format do that.

In a folder, files whose names aren't those of images are skipped and named on stderr; that isn't a
failure. Files that are given by name must be images. Processes of torchrun and `accelerate launch`
share the images: `torchrun --nproc-per-node 4 -m hf_detr predict …`. Each writes lines of its own,
and the last one merges them; --merge does that later, for example if machines have different disks.
Failed images then don't change the exit status, because torchrun would stop the other processes.
"""

import argparse
import os
from importlib.util import find_spec
from itertools import islice
from os.path import realpath  # unlike Path.resolve, it accepts circular links
from pathlib import Path

from ..inference.data_set_images import DataSetImages
from ..inference.image_inputs import STDIN, ImageInputs
from ..inference.prediction_formats import FORMATS, IMAGE_FOLDERS
from ..inference.prediction_shards import part_name, shard_file
from .options import add_json_option, add_prediction_options, check_tile_options, positive

FEW = 1000  # images, up to which all results are drawn and written to one JSON file
MERGE_OPTIONS = ("merge", "output", "format", "uncertain", "json")  # that --merge can have
SAID = 10  # skipped files that are named on stderr


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="image files, folders, patterns like '*.jpg', tar files, http addresses, addresses "
        "that fsspec knows such as s3://bucket/photos, or - for a list on stdin",
    )
    _add_input_options(parser)
    add_prediction_options(parser)
    parser.add_argument(
        "--workers",
        "--num-workers",
        type=int,
        default=0,
        help="threads that read and resize images while the model runs, default 0",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="also write each image's segment map, a 16-bit PNG with 0 for no segment; needs a "
        "segmentation model",
    )
    parser.add_argument(
        *("--draw", "--pictures"),
        action=argparse.BooleanOptionalAction,
        help="write images with the objects drawn; default: up to 1,000 images",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="what is written beside predictions.jsonl: one JSON file, Parquet, or a data set with "
        "the images; default: json, or nothing more (jsonl) for many images",
    )
    parser.add_argument(
        "--uncertain",
        type=positive,
        metavar="N",
        help="also write uncertain.txt, the names of the N images that are most worth labelling: "
        "those with the largest sum of p (1 - p) over all scores p above 0.1, which is the "
        "`uncertainty` of each image in the results; without masks",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue predictions.jsonl of a killed run with the same options",
    )
    help = "as --resume, and run images again that failed"
    parser.add_argument("--retry-failed", action="store_true", help=help)
    parser.add_argument(
        "--merge",
        action="store_true",
        help="only merge the files of several processes in --output to those of one",
    )
    add_json_option(parser)


def _add_input_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recursive", action="store_true", help="also read folders in folders")
    help = "names on stdin end with NUL, as those of find -print0"
    parser.add_argument("--null", "-0", action="store_true", help=help)
    parser.add_argument(
        "--data",
        help="data set of the library `datasets` instead of IMAGES: a name on the Hub, a folder of "
        "save_to_disk, Parquet or images, or a Parquet file",
    )
    parser.add_argument("--split", help="split of --data; needed if there are several")
    help = "column of --data, default image"
    parser.add_argument("--image-column", default="image", help=help)


def check(parsed: argparse.Namespace) -> None:
    """Check the arguments; `inputs` are the images, `count` is their number if it is known.

    `process` and `num_processes` are those of torchrun. `draw` and `format` become what is written.
    """
    _check_tasks_of_slurm()
    parsed.process = int(os.environ.get("RANK", 0))
    parsed.num_processes = int(os.environ.get("WORLD_SIZE", 1))
    if parsed.format == "parquet" and find_spec("pyarrow") is None:
        raise ValueError("--format parquet needs pyarrow: pip install pyarrow.")
    if parsed.merge:
        _check_merge(parsed)
        return
    check_tile_options(parsed)
    parsed.resume |= parsed.retry_failed
    parsed.inputs = _checked_inputs(parsed)
    parsed.count = parsed.inputs.count()
    parsed.are_many = parsed.count is None or parsed.count > FEW or parsed.num_processes > 1
    if parsed.draw is None:
        parsed.draw = not parsed.are_many
    if parsed.format is None:
        parsed.format = "jsonl" if parsed.are_many else "json"
    if parsed.uncertain and parsed.masks:
        raise ValueError("--uncertain reads the scores of boxes; omit --masks.")
    if parsed.workers < 0:
        raise ValueError(f"--workers is {parsed.workers}; expected at least 0.")
    if parsed.num_processes > 1 and parsed.json:
        raise ValueError(
            f"--json can't be used by {parsed.num_processes} processes together; use --format json."
        )
    _check_output(parsed)


def _check_tasks_of_slurm() -> None:
    number = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))  # of srun, not of the whole job
    if number > 1 and "RANK" not in os.environ:
        raise ValueError(
            f"srun started {number} tasks, which would write the same files. To share the images, "
            "set RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID in each "
            "task, or start torchrun in one task per node. If each task has an --output of its "
            "own, set RANK=0 WORLD_SIZE=1."
        )


def _check_merge(parsed: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    defaults = vars(parser.parse_args([])).items()
    given = [name for name, value in defaults if getattr(parsed, name) != value]
    unused = [
        "IMAGES" if name == "images" else f"--{name.replace('_', '-')}"
        for name in given
        if name not in MERGE_OPTIONS
    ]
    if unused:
        raise ValueError(
            f"--merge reads what was written to --output; omit {', '.join(unused)}, which would "
            "have no effect."
        )
    if parsed.num_processes > 1:
        raise ValueError(f"--merge is for one process, but {parsed.num_processes} were started.")
    if not parsed.output.is_dir():
        raise FileNotFoundError(f"--output {parsed.output} isn't a folder.")


def _checked_inputs(parsed: argparse.Namespace) -> ImageInputs | DataSetImages:
    if bool(parsed.images) == bool(parsed.data):
        raise ValueError("expected IMAGES or --data, and not both.")
    if parsed.data and (parsed.recursive or parsed.null):
        raise ValueError("--recursive and --null are for IMAGES; --data doesn't have them.")
    if not parsed.data and (parsed.split or parsed.image_column != "image"):
        raise ValueError("--split and --image-column need --data.")
    if parsed.images.count(STDIN) > (parsed.num_processes == 1):
        raise ValueError("a list on stdin can be read once, and only by one process.")
    inputs = (
        DataSetImages(parsed.data, parsed.split, parsed.image_column)
        if parsed.data
        else ImageInputs(parsed.images, parsed.recursive, parsed.null)
    )
    inputs.check()
    return inputs


def _check_output(parsed: argparse.Namespace) -> None:
    """Check that neither input images nor results that --resume is to continue are lost."""
    is_data_set = parsed.format in IMAGE_FOLDERS
    writes_images = parsed.masks or parsed.draw or is_data_set
    if writes_images and _endangers(parsed.output, parsed.inputs):
        raise ValueError(f"--output {parsed.output} contains input images; give another folder")
    own = shard_file(parsed.output, parsed.process, parsed.num_processes).name
    ending = own if parsed.num_processes == 1 else own[own.index("-of-") :]
    lines = sorted(path.name for path in parsed.output.glob("predictions*.jsonl"))
    if parsed.resume and lines and not any(name.endswith(ending) for name in lines):
        raise ValueError(
            f"{parsed.output} has {lines[0]}, which was written by another number of processes "
            f"than {parsed.num_processes}; --resume needs the same number."
        )
    folder = parsed.output / IMAGE_FOLDERS.get(parsed.format, "")
    if is_data_set and not parsed.resume and folder.is_dir():
        of_others = [part_name(n, parsed.num_processes) for n in range(parsed.num_processes)]
        del of_others[parsed.process]  # they can be running already
        if any(path.name not in of_others for path in folder.iterdir()):
            raise ValueError(f"{folder} isn't empty; give another --output, or --resume.")


def _endangers(output: Path, inputs: ImageInputs | DataSetImages) -> bool:
    """Return whether results would be written to an input folder, or over an input by a link."""
    target, folders = realpath(output), {}
    found = output.rglob("*") if output.is_dir() else ()
    links = [path for path in found if path.is_symlink()]
    # Those to the images of a data set aren't written to, but replaced.
    is_ours = [path.relative_to(output).parts[0] in IMAGE_FOLDERS.values() for path in links]
    linked = {realpath(path) for path, ours in zip(links, is_ours, strict=True) if not ours}
    for file in inputs.local_files():
        folder = folders.get(file.parent) or folders.setdefault(file.parent, realpath(file.parent))
        place = realpath(file) if file.is_symlink() else os.path.join(folder, file.name)
        if folder == target or os.path.dirname(place) == target or place in linked:
            return True
    return False


def run(parsed: argparse.Namespace) -> int:
    """Find objects in the images; return the exit status."""
    from .prediction_results import merge_if_last, merge_results, say

    if parsed.merge:
        return merge_results(parsed)
    from ..distributed import device_of_process
    from ..inference.model_loading import load_model
    from ..inference.score_thresholds import known_threshold
    from .prediction_run import PredictionRun

    if parsed.process == 0:
        skipped = parsed.inputs.skipped()
        for file in islice(skipped, SAID):
            say(f"skipped: {file} doesn't have the name of an image")
        if others := sum(1 for _ in skipped):
            say(f"skipped: {others} more files")
    device = parsed.device or device_of_process()
    masks = False if parsed.uncertain else parsed.masks or None
    model, processor = load_model(parsed.model, device, masks, parsed.dtype)
    parsed.threshold = known_threshold(parsed.threshold, model.config)
    parsed.output.mkdir(parents=True, exist_ok=True)
    prediction_run = PredictionRun(parsed, model, processor)
    try:
        prediction_run.predict()
    finally:  # also after an error or an interrupt
        prediction_run.finish()
    if parsed.num_processes > 1:
        merge_if_last(parsed)
    return prediction_run.status()
