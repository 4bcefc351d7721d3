"""Compare time, memory and AP of training Deformable DETR with hf_detr and transformers.

    python examples/benchmarks/compare_training.py --data data/garments --steps 300 \\
        --backbone_weights efficientnet-lite0.pth

Both start with the same weights and use the same batches, optimizer, learning rates and evaluation.
They run in separate processes to measure the peak of memory.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from hf_detr.data.batches import DetectionCollator
from hf_detr.data.formats import read_splits
from hf_detr.evaluation.evaluate import evaluate
from hf_detr.training.model_setup import make_model, make_transform, prepare_model
from hf_detr.training.options import TrainingOptions
from hf_detr.training.plan import plan_epoch


@dataclass
class ComparisonOptions:
    """Options of both trainings."""

    data: Path = HfArg(help="folder with train and val (or test)")
    backbone_weights: Path | None = HfArg(default=None, help="file with the backbone's weights")
    model: str = HfArg(
        default=str(Path(__file__).parent / "comparison.json"),
        help="architecture without two_stage, which transformers can't train",
    )
    output: Path = HfArg(default=Path("comparison"), help="folder for weights and results")
    steps: int = HfArg(default=300, help="optimizer steps")
    minutes: float | None = HfArg(default=None, help="time of each training, instead of steps")
    batch_size: int = HfArg(default=8, help="images per step")
    lr: float = HfArg(default=2e-4, help="learning rate; backbone and offsets: a tenth")
    seed: int = HfArg(default=0, help="seed of weights, order and augmentation")
    threads: int = HfArg(default=1, help="threads of torch on the CPU")
    side: Literal["both", "ours", "theirs"] = HfArg(default="both", help="package to train with")


def parameter_groups(model: nn.Module, frozen: set[str], lr: float) -> list[dict[str, Any]]:
    """The papers' parameter groups; `frozen` are names of parameters in the backbone."""
    fast, slow = [], []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split("backbone.")[-1] not in frozen)
        is_slow = any(part in name for part in ("backbone", "sampling_offsets", "reference_points"))
        if parameter.requires_grad:
            (slow if is_slow else fast).append(parameter)
    return [{"params": fast, "lr": lr}, {"params": slow, "lr": lr / 10}]


def train(options: ComparisonOptions) -> dict[str, float]:
    """Train with one package; return seconds per step, peak memory and AP."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    given = TrainingOptions(backbone_weights=options.backbone_weights)
    data, val_data = read_splits(options.data, seed=options.seed)
    model, processor, _ = make_model(options.model, given, data)
    prepare_model(model, processor, given)
    data.set_transform(make_transform(given, processor))
    frozen = {n.split("backbone.")[1] for n, p in model.named_parameters() if not p.requires_grad}
    if options.side == "theirs":
        start = options.output / "start"
        model.save_pretrained(start)
        model = transformers.DeformableDetrForObjectDetection.from_pretrained(start)
        model.to(memory_format=torch.channels_last)  # as prepare_model does
    optimizer = torch.optim.AdamW(parameter_groups(model, frozen, options.lr), weight_decay=1e-4)
    steps = None if options.minutes else options.steps
    batches = make_batches(options, data, DetectionCollator(processor), steps)
    model.train()
    seconds, loss, begin = [], torch.zeros(()), time.perf_counter()
    for batch in tqdm(batches, total=steps, desc=options.side, unit="step"):
        if options.minutes and time.perf_counter() - begin > 60 * options.minutes:
            break
        torch.manual_seed(len(seconds))  # the same dropout as far as possible
        start = time.perf_counter()
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    median = torch.tensor(seconds).median().item()
    metrics = evaluate(model, processor, val_data)
    return {
        "steps": len(seconds),
        "seconds per step": median,
        "images per second": options.batch_size / median,
        "peak memory, MiB": peak,
        "last loss": loss.item(),
        "AP": metrics["AP"],
        "AP50": metrics["AP50"],
    }


def make_batches(
    options: ComparisonOptions, data: Any, collator: DetectionCollator, steps: int | None
) -> Any:
    """Yield a batch per step, without end if there is no number of steps."""
    done, epoch = 0, 0
    while steps is None or done < steps:
        data.set_epoch(epoch)
        plan = plan_epoch(
            len(data), options.batch_size, options.batch_size, epoch=epoch, seed=options.seed
        )
        indices = [part.indices for parts in plan for part in parts]
        indices = indices[: None if steps is None else steps - done]
        yield from DataLoader(data, batch_sampler=indices, collate_fn=collator)
        done, epoch = done + len(indices), epoch + 1


def main() -> None:
    """Train with both packages in separate processes and print the results."""
    (options,) = HfArgumentParser(
        ComparisonOptions, description=__doc__
    ).parse_args_into_dataclasses()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.side != "both":
        result = train(options)
        (options.output / f"{options.side}.json").write_text(json.dumps(result, indent=1))
        return
    results = {}
    for side in ("ours", "theirs"):
        values = {**asdict(options), "side": side}
        given = [t for name, v in values.items() if v is not None for t in (f"--{name}", str(v))]
        subprocess.run([sys.executable, __file__, *given], check=True)
        results[side] = json.loads((options.output / f"{side}.json").read_text())
    after = f"{options.minutes} minutes" if options.minutes else f"{options.steps} steps"
    print(f"After {after} with steps of {options.batch_size} images:\n")
    print("| | hf_detr | transformers |\n|---|---|---|")
    for name, value in results["ours"].items():
        print(f"| {name} | {value:.4g} | {results['theirs'][name]:.4g} |")


if __name__ == "__main__":
    main()
