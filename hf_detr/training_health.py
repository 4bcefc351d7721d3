"""How a training is doing, in words: what to look at after an epoch, and when to stop at once.

Gathering costs no synchronisation with an accelerator; reporting has a few.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .classification import Classification
from .outputs import ObjectDetectionOutput
from .processes import any_process, gather_from_processes

ONE_SIDED = 0.9  # share of the loss from which a term drowns the others
STILL = 0.01  # a query's box that moves less from image to image, in parts of the image, is stuck
COLLAPSED = 0.95  # share of stuck queries that is called a collapse
ALIVE = 0.1  # score that a class must reach where it is to be seen
SPIKE, GROWTH = 100, 5  # gradient norm: highest to median, and second half of the epoch to first
NAMED = 10  # classes, images or parameters that a line names at most


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is NaN or infinite; the weights haven't been changed by it."""


class TrainingHealth:
    """Watches an epoch and reports on it.

    Args:
        weights: the loss terms' weights by bare name, such as the criterion's `weights`.
        classification: says what the logits mean.
        id2label: the classes' names, 0 … C-1.
        max_norm: what the gradient's norm is clipped at; None if it isn't.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        classification: Classification,
        id2label: Mapping[int, str],
        max_norm: float | None = None,
    ) -> None:
        self.weights = dict(weights)
        self.classification = classification
        self.id2label = dict(id2label)
        self.max_norm = max_norm
        self._last_boxes: Tensor | None = None  # (1, Q, 4), of the image before
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._norms: list[Tensor] = []
        self._num_skipped = 0

    @torch.no_grad()
    def add_batch(
        self, outputs: ObjectDetectionOutput, labels: Sequence[dict[str, Tensor]]
    ) -> None:
        """Watch a batch that the model learns from.

        Args:
            outputs: what the model gave, with `loss_dict`, `logits` (B, Q, C') and `pred_boxes`
                (B, Q, 4).
            labels: per image `class_labels` (n,).
        """
        for name, value in outputs.loss_dict.items():
            kind = re.sub(r"(_\d+|_enc)$", "", name)
            if kind in self.weights:
                self._add(kind, self.weights[kind] * value.float())
        boxes = outputs.pred_boxes.float()
        if self._last_boxes is not None:
            boxes = torch.cat([self._last_boxes, boxes])
        self._last_boxes = boxes[-1:].clone()  # a view would keep the batch's graph
        self._add("moved", (boxes[1:] - boxes[:-1]).abs().amax(-1).sum(0))  # (Q,)
        self._add("pairs", boxes.new_full((), len(boxes) - 1))
        best = self.classification.probabilities(outputs.logits).amax(1)  # (B, C)
        is_there = torch.zeros_like(best, dtype=torch.bool)
        for image, target in zip(is_there, labels, strict=True):
            image[target["class_labels"].to(best.device)] = True
        self._add("there", is_there.float().sum(0))  # (C,)
        self._add("found", (is_there & (best > ALIVE)).float().sum(0))

    def add_step(self, gradient_norm: Tensor | float) -> None:
        """Watch a step of the optimiser, with the gradient's norm before it was clipped."""
        self._norms.append(torch.as_tensor(gradient_norm).detach().float())

    def add_skipped_step(self) -> None:
        """Count a step that was left out because its loss or gradient wasn't finite."""
        self._num_skipped += 1

    def report(self) -> list[str]:
        """What was seen since the last report, line by line; every process must call this."""
        own = {name: value.cpu() for name, value in self._sums.items()}
        shares = gather_from_processes(own)
        sums: dict[str, Tensor] = {}
        for share in shares:
            for name, value in share.items():
                sums[name] = sums.get(name, 0) + value
        lines = []
        if sums:
            lines += self._describe_loss(sums, len(self._norms) * len(shares))
        if self._norms:
            lines += self._describe_gradients(torch.stack(self._norms).cpu())
        if sums:
            lines += _describe_boxes(sums["moved"], sums["pairs"])
            lines += self._describe_classes(sums["there"], sums["found"])
        if self._num_skipped:
            lines.append(
                f"{self._num_skipped} steps were left out because their loss or gradient wasn't "
                "finite. A few do no harm; if they get more, lower the learning rate, or train in "
                "bfloat16 or float32 if this is float16."
            )
        self._reset()
        return lines

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def _describe_loss(self, sums: dict[str, Tensor], num_steps: int) -> list[str]:
        """The terms' shares in the loss, all layers together."""
        terms = {name: sums[name].item() for name in self.weights if name in sums}
        total = sum(terms.values())
        if total == 0:
            return ["The loss is 0: check that its weights aren't."]
        shares = {name: value / total for name, value in terms.items()}
        mean = f" {total / num_steps:.4g}" if num_steps else ""
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines = [f"Loss{mean}: {listed}, all layers together."]
        lines += [
            f"{name} is nearly all of the loss, so little else is learned. Look at its weight "
            f"({self.weights[name]:g}), and at the labels."
            for name, share in shares.items()
            if share > ONE_SIDED and len(shares) > 1
        ]
        return lines

    def _describe_gradients(self, norms: Tensor) -> list[str]:
        """The gradient's norm (steps,) and how it goes."""
        median, highest = norms.median().item(), norms.max().item()
        lines = [f"Gradient norm: median {median:.3g}, highest {highest:.3g}."]
        if self.max_norm is not None:
            clipped = (norms > self.max_norm).float().mean().item()
            lines[0] += f" Clipped at {self.max_norm:g} in {clipped:.0%} of {len(norms)} steps."
        first, second = norms[: len(norms) // 2], norms[len(norms) // 2 :]
        if median == 0:
            lines.append("The gradient is 0: nothing is learned. Look at what is frozen.")
        elif highest > SPIKE * median:
            lines.append(
                f"The highest gradient is {highest / median:.0f} times the usual one. Look at the "
                "images of that step and at the clipping (the papers clip at 0.1)."
            )
        if len(first) and second.median() > GROWTH * first.median() > 0:
            lines.append(
                f"The gradient has grown {second.median() / first.median():.1f} times within the "
                "epoch. Usual while the learning rate warms up; else lower the learning rate."
            )
        return lines

    def _describe_classes(self, there: Tensor, found: Tensor) -> list[str]:
        """Classes (C,) with the images that have them, and those where they scored."""
        num_there = int((there > 0).sum())
        if num_there == 0:
            return ["No image had an object. Look at the labels: is this the right file?"]
        dead = ((there > 0) & (found == 0)).nonzero().flatten().tolist()
        if not dead:
            return [f"Classes: all {num_there} in the images were scored above {ALIVE} there."]
        dead.sort(key=lambda index: -there[index].item())
        named = [f"{self.id2label[i]} ({there[i].item():.0f} images)" for i in dead]
        return [
            f"Dead classes: {len(dead)} of {num_there} never scored above {ALIVE} in an image that "
            f"has them: {_shortened(named)}. Usual in the first epochs and for classes with few "
            "images; later look at those classes' labels and names, and give them more images."
        ]


def _describe_boxes(moved: Tensor, num_pairs: Tensor) -> list[str]:
    """Whether the queries' boxes (Q,) follow the images, from how far they moved."""
    if num_pairs == 0:
        return []
    steps = moved / num_pairs
    num_still, num_queries = int((steps < STILL).sum()), len(steps)
    if num_still < COLLAPSED * num_queries:
        return [
            f"Boxes: from image to image a query's box moves by {steps.median():.2g} of the image "
            f"(median); {num_still} of {num_queries} queries stay where they are."
        ]
    return [
        f"Query collapse: {num_still} of {num_queries} queries predict the same box for all images "
        f"(they move by less than {STILL} of the image). Usual in the first epochs; later look at "
        "the learning rate (the papers: 1e-4 with a batch of 16 to 32, a tenth of it for the "
        "backbone), at whether the backbone's pretrained weights were loaded, and at whether the "
        "images are normalised as it expects."
    ]


def find_nonfinite_loss(
    batch: Mapping[str, Any],
    outputs: ObjectDetectionOutput | None,
    images: Sequence[int] = (),
) -> str | None:
    """What isn't finite in a step's loss, in words, the same on every process; None if all is.

    Every process must call this after its forward pass, before the backward pass, where processes
    wait for each other: so they stop, or leave the step out, together.

    Args:
        batch: `pixel_values` (B, 3, H, W) and `labels`, per image with its `image_id`.
        outputs: what the model gave, with `loss` and `loss_dict`; None if the matcher refused the
            predictions because they aren't finite.
        images: then, which images of the batch, as far as its error says.
    """
    pixel_values = batch["pixel_values"]
    is_bad = torch.ones((), device=pixel_values.device)
    if outputs is not None:
        is_bad = ~outputs.loss.detach().isfinite()
    if not any_process(is_bad):
        return None
    problem = _describe_nonfinite(batch, outputs, images) if is_bad else None
    return " ".join(text for text in gather_from_processes(problem) if text)


def _describe_nonfinite(
    batch: Mapping[str, Any], outputs: ObjectDetectionOutput | None, images: Sequence[int]
) -> str:
    """What isn't finite in this process's batch, and which images are to be looked at."""
    labels = batch["labels"]
    finite_pixels = batch["pixel_values"].flatten(1).isfinite().all(1).tolist()
    bad_pixels = [image for image, is_finite in enumerate(finite_pixels) if not is_finite]
    if bad_pixels:
        names = _image_names(labels, bad_pixels)
        return f"NaN or infinity in the pixels of {names}: look at how images are read."
    where = "the predictions"
    if outputs is not None:
        terms = [name for name, value in outputs.loss_dict.items() if not value.isfinite()]
        where = f"the loss ({_shortened(terms)})"
    names = _image_names(labels, images or range(len(labels)))
    return (
        f"NaN or infinity in {where} of {names}, whose pixels are finite. Usual reasons: a "
        "learning rate that is too high, no clipping of the gradient (the papers clip its norm at "
        "0.1), overflow in float16."
    )


def describe_nonfinite_gradients(model: nn.Module) -> str:
    """Which parameters' gradients aren't finite, in words, after a finite loss's backward pass.

    To be asked before the optimiser's step, if the gradient's norm isn't finite. A gradient scaler
    for float16 tries too large factors on purpose, and leaves such steps out by itself.
    """
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    return (
        f"The loss is finite, but the gradients of {len(names)} of {len(gradients)} parameters "
        f"aren't: {_shortened(names)}. Usual reasons: overflow in float16, or a learning rate that "
        "is too high."
    )


def _image_names(labels: Sequence[Mapping[str, Tensor]], images: Sequence[int]) -> str:
    """Images of a batch by their ids, or their places if they have none."""
    ids = [
        str(int(labels[i]["image_id"])) if "image_id" in labels[i] else f"number {i} of the batch"
        for i in images
    ]
    return f"image {ids[0]}" if len(ids) == 1 else f"images {_shortened(ids)}"


def _shortened(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
