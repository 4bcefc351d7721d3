"""Compare the number of epochs in which the other models reach the AP of DETR.

    python examples/garments/make_garments.py --output data/garments --side 128
    python examples/benchmarks/compare_convergence.py --data data/garments \\
        --backbone_weights efficientnet-lite0.pth

Trains all models with the same backbone, width, depth, queries, data, order, number of steps
and optimizer, and writes `convergence.csv`, `.png` and `.md`. An interrupted run is resumed when it
is started again. With `--only detr` etc. the models can be trained in parallel; the command without
`--only` then writes the comparison.
"""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from hf_detr import DataArguments, plots
from hf_detr.models.variants import VARIANTS
from hf_detr.training.options import TrainingOptions
from hf_detr.training.train import prepare

Curves = dict[str, list[tuple[int, float]]]


@dataclass
class ComparisonOptions:
    """Options of all models."""

    data: Path = HfArg(help="folder with train and val (or test)")
    output: Path = HfArg(default=Path("convergence"), help="folder for the results")
    backbone: str = HfArg(default="tf_efficientnet_lite0", help="timm's name of the backbone")
    backbone_weights: Path | None = HfArg(
        default=None, help="file with the backbone's weights; default: timm's on the Hub"
    )
    backbone_mean_std: float | None = HfArg(
        default=0.5, help="mean and standard deviation of pixels for the backbone"
    )
    image_size: int = HfArg(default=128, help="shortest edge in pixels")
    width: int = HfArg(default=128, help="d_model; feed-forward networks are four times as wide")
    layers: int = HfArg(default=3, help="layers of the encoder and of the decoder")
    queries: int = HfArg(default=30, help="object queries")
    epochs: int = HfArg(default=30, help="epochs of each model")
    batch_size: int = HfArg(default=8, help="images per step")
    lr: float = HfArg(default=3e-4, help="learning rate; the backbone's is a tenth")
    seed: int = HfArg(default=0, help="seed of weights and data")
    only: str | None = HfArg(
        default=None, help=f"train one of {', '.join(VARIANTS)}, without a comparison"
    )


def write_architecture(options: ComparisonOptions, model_type: str) -> Path:
    """Write the architecture of a model for `hf-detr train`."""
    architecture: dict[str, Any] = {
        "model_type": model_type,
        "backbone": options.backbone,
        "use_pretrained_backbone": options.backbone_weights is None,
        "d_model": options.width,
        "num_queries": options.queries,
        # All use the feature map at stride 16; stride 32 is too coarse for small images.
        "backbone_kwargs": {"out_indices": [3]},
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
        "preprocessing": {
            "size": {
                "shortest_edge": options.image_size,
                "longest_edge": round(options.image_size * 1333 / 800),
            },
            "image_mean": [options.backbone_mean_std] * 3,
            "image_std": [options.backbone_mean_std] * 3,
        },
    }
    if hasattr(VARIANTS[model_type].config, "num_feature_levels"):
        architecture["num_feature_levels"] = 2  # the second is computed from the first
    if hasattr(VARIANTS[model_type].config, "num_denoising_queries"):
        architecture["num_denoising_queries"] = options.queries
    for part in ("encoder", "decoder"):
        architecture[f"{part}_layers"] = options.layers
        architecture[f"{part}_ffn_dim"] = 4 * options.width
    path = options.output / f"{model_type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(architecture, indent=1))
    return path


def train(options: ComparisonOptions, model_type: str) -> list[tuple[int, float]]:
    """Train a model and return (epoch, AP) of every epoch."""
    given = TrainingOptions(
        small_data=True,
        epochs=options.epochs,
        batch_size=options.batch_size,
        micro_batch_size=options.batch_size,
        lr=options.lr,
        workers=0,
        seed=options.seed,
        backbone_weights=options.backbone_weights,
        no_augmentation=True,
        resume=True,
    )
    architecture = write_architecture(options, model_type)
    data = DataArguments(options.data)
    training = prepare(str(architecture), data, options.output / model_type, given)
    training.run()
    return [(entry["epoch"], entry["AP"]) for entry in training.history]


def write_results(options: ComparisonOptions, curves: Curves) -> str:
    """Write table, plot and summary; return the summary."""
    with (options.output / "convergence.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "epoch", "AP"])
        writer.writerows((name, *point) for name, points in curves.items() for point in points)
    figure = plots.draw_comparison(curves)
    figure.savefig(options.output / "convergence.png", dpi=120)
    summary = summarize(curves)
    (options.output / "convergence.md").write_text(summary)
    return summary


def summarize(curves: Curves) -> str:
    """A Markdown table with final and best AP, and the first epoch with DETR's final AP."""
    epochs, goal = curves["detr"][-1]
    lines = [
        f"| model | AP after {epochs} epochs | best AP | epochs to AP {goal:.3f} | fewer by |",
        "|---|---|---|---|---|",
    ]
    for model_type, points in curves.items():
        reached = next((epoch for epoch, ap in points if ap >= goal), None)
        fewer = "not reached" if reached is None else f"{epochs / reached:.1f} ×"
        best_epoch, best = max(points, key=lambda point: point[1])
        cells = (model_type, f"{points[-1][1]:.3f}", f"{best:.3f} (epoch {best_epoch})")
        lines.append(f"| {' | '.join(cells)} | {reached or '-'} | {fewer} |")
    if goal < 0.05:
        lines.append("\nThe AP of DETR is too low for a meaningful comparison.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train all models and write the comparison."""
    (options,) = HfArgumentParser(
        ComparisonOptions, description=__doc__
    ).parse_args_into_dataclasses()
    if options.only is not None:
        train(options, options.only)
        return
    curves = {model_type: train(options, model_type) for model_type in VARIANTS}
    print(write_results(options, curves))


if __name__ == "__main__":
    main()
