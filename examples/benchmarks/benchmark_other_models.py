"""Time models of transformers with `hf_detr.speed_up` against the same models without it.

    OMP_NUM_THREADS=1 python examples/benchmarks/benchmark_other_models.py --rounds 5
    python examples/benchmarks/benchmark_other_models.py --quick    # a short test

Weights are random. Times are CPU milliseconds of the whole model for one image, and are printed
only if results are equal. Models of two stages choose the same proposals for that: rounding changes
the order of those that random weights find nearly equal.
"""

import argparse
import copy
from collections.abc import Callable
from functools import partial

import torch
import transformers
from benchmark_timing import SameProposals, medians, parse_arguments
from torch import Tensor, nn

from hf_detr import speed_up

ATOL = 1e-4  # of logits, boxes in [0, 1] and probabilities of masks
WORDS = 16


def make_rt_detr() -> nn.Module:
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig())


def make_grounding_dino() -> nn.Module:
    return transformers.GroundingDinoForObjectDetection(transformers.GroundingDinoConfig())


def make_mask2former() -> nn.Module:
    return transformers.Mask2FormerForUniversalSegmentation(transformers.Mask2FormerConfig())


def make_oneformer() -> nn.Module:
    return transformers.OneFormerForUniversalSegmentation(transformers.OneFormerConfig())


# Model, and height and width of its image
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "RT-DETR": (make_rt_detr, (640, 640)),
    "Grounding DINO": (make_grounding_dino, (800, 1066)),
    "Mask2Former": (make_mask2former, (800, 1066)),
    "OneFormer": (make_oneformer, (800, 1066)),
}


def run(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits, and boxes or masks."""
    outputs = model(**inputs)
    if hasattr(outputs, "masks_queries_logits"):
        return outputs.class_queries_logits, outputs.masks_queries_logits.sigmoid()
    return outputs.logits, outputs.pred_boxes


@torch.no_grad()
def measure(name: str, quick: bool, rounds: int) -> str:
    """Measure one model and return a row of the table."""
    torch.manual_seed(0)
    make, size = MODELS[name]
    model = make().eval()
    inputs = {"pixel_values": torch.randn(1, 3, *((224, 224) if quick else size))}
    if name == "Grounding DINO":
        inputs["input_ids"] = torch.randint(1000, 2000, (1, WORDS))
    if name == "OneFormer":
        inputs["task_inputs"] = torch.randint(1000, 2000, (1, model.config.task_seq_len)).float()
    runs = [partial(run, one, inputs) for one in (model, speed_up(copy.deepcopy(model)))]
    with SameProposals():
        pairs = list(zip(*(one() for one in runs), strict=True))
    if not all(torch.allclose(*pair, rtol=ATOL, atol=ATOL) for pair in pairs):
        return f"| {name} | not timed: results differ by more than {ATOL} |"
    before, after = medians(*runs, rounds=rounds)
    return f"| {name} | {1e3 * before:.0f} | {1e3 * after:.0f} | {before / after:.2f}x |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    arguments = parse_arguments(parser)
    print("\n| model | transformers | with speed_up | ratio |\n|---|---|---|---|")
    for name in arguments.models:
        print(measure(name, arguments.quick, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
