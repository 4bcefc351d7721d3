"""Compare options of training on small data, each in the same time.

    python examples/small_data/compare_presets.py --data data/trees --minutes 10 \\
        --preset '{}' --preset '{"query_groups": 3}' --preset '{"freeze": ["backbone"]}'

Every preset is a JSON object of the options of `hf_detr.train`, in addition to `small_data`. As
many epochs are trained as fit into the minutes: ten steps are measured first. AP is that of the
best of five evaluations, which aren't counted. On a busy machine presets get fewer steps; --steps
gives all the same number.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hf_detr import DataArguments
from hf_detr.training.options import TrainingOptions
from hf_detr.training.train import prepare
from hf_detr.training.trainer import Training

PILOT_STEPS = 10


def start(options: argparse.Namespace, preset: dict[str, Any], output: Path) -> Training:
    """Prepare a training on all threads."""
    data = DataArguments(options.data, split=options.split)
    return prepare(options.model, data, output, TrainingOptions(**{"small_data": True, **preset}))


def seconds_per_step(training: Training) -> float:
    """Train some steps; return the time of one."""
    done: list[float] = []
    training.end_epoch = lambda epoch: None
    training.save = lambda: None
    take_step = training.take_step

    def timed(*arguments: Any) -> float | None:
        loss = take_step(*arguments)
        done.append(time.perf_counter())
        return loss

    training.take_step = timed
    training.total_steps = PILOT_STEPS
    training.run()
    return (done[-1] - done[1]) / (len(done) - 2)  # the first steps are slower


def compare(options: argparse.Namespace, preset: dict[str, Any], name: str) -> dict[str, Any]:
    """Train with a preset; return what it reached."""
    pilot = start(options, {**preset, "epochs": PILOT_STEPS}, options.output / name / "pilot")
    pace = seconds_per_step(pilot)
    steps = options.steps or 60 * options.minutes / pace
    epochs = max(round(steps / pilot.steps_per_epoch), 1)
    given = {**preset, "epochs": epochs, "evaluate_every": max(epochs // 5, 1)}
    training = start(options, given, options.output / name)
    training.options = replace(training.options, save_every=10**9)
    begin = time.perf_counter()
    training.run()
    best = training.best()
    row = {"preset": json.dumps(preset), "steps": training.total_steps, "s/step": round(pace, 3)}
    row |= {metric: round(best[metric], 3) for metric in ("AP", "AP50")}
    row["AP50s"] = " ".join(f"{entry['AP50']:.3f}" for entry in training.history)
    return {**row, "minutes": round((time.perf_counter() - begin) / 60, 1)}


def main() -> None:
    """Compare all presets and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="as for hf-detr train")
    parser.add_argument("--split", help="training split")
    parser.add_argument("--model", help="default: the small detector that comes with hf_detr")
    parser.add_argument("--minutes", type=float, default=10, help="of training, default 10")
    parser.add_argument("--steps", type=int, help="instead of --minutes")
    parser.add_argument("--preset", type=json.loads, action="append", default=[], metavar="JSON")
    parser.add_argument("--output", type=Path, default=Path("presets"), help="folder for results")
    parser.add_argument("--threads", type=int, help="of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for number, preset in enumerate(options.preset or [{}]):
        row = compare(options, preset, str(number))
        if number == 0:
            print(" | ".join(row), flush=True)
        print(" | ".join(map(str, row.values())), flush=True)


if __name__ == "__main__":
    main()
