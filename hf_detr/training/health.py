"""Reports on the state of a training after each epoch, and finds losses that aren't finite.

Collecting statistics doesn't synchronize with the accelerator; a report does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distributed import any_process, gather_from_processes
from ..losses.classification import Classification
from ..models.outputs import ObjectDetectionOutput
from ..wording import some_of

ONE_SIDED = 0.9  # share of the loss from which a term is reported as dominating
STILL = 0.01  # a query is stuck if its box moves less between images, relative to the image
COLLAPSED = 0.95  # share of stuck queries that is reported as a collapse
ALIVE = 0.1  # a class is dead if it never reaches this score in images that have it
SPIKE, GROWTH = 100, 5  # ratios of gradient norms: maximum / median, second / first half
NAMED = 10  # maximum number of names in a line


class NonFiniteLossError(ArithmeticError):
    """Raised before the optimizer step if the loss or its gradient is NaN or infinite."""


class TrainingHealth:
    """Collects statistics during an epoch and reports on them.

    Args:
        weights: weights of the loss terms, such as the criterion's `weights`.
        classification: converts logits to probabilities.
        id2label: names of the classes 0 … C-1.
        max_norm: norm at which gradients are clipped; None without clipping.
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
        self._last_boxes: Tensor | None = None  # (1, Q, 4), of the previous image
        self._reset()

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._norms: list[Tensor] = []
        self._num_skipped = 0

    @torch.no_grad()
    def add_batch(
        self, outputs: ObjectDetectionOutput, labels: Sequence[dict[str, Tensor]]
    ) -> None:
        """Add the outputs of a training batch.

        Args:
            outputs: the model's outputs with `loss_dict`, `logits` (B, Q, C') and `pred_boxes`
                (B, Q, 4).
            labels: targets per image with `class_labels` (n,).
        """
        for name, value in outputs.loss_dict.items():
            kind = re.sub(r"(_\d+)?(_enc|_dn)?$", "", name)
            if kind in self.weights:
                self._add(kind, self.weights[kind] * value.float())
        boxes = outputs.pred_boxes.float()
        if self._last_boxes is not None:
            # Proposals of an encoder can't be more than its tokens, so small images have fewer.
            number = min(boxes.shape[1], self._last_boxes.shape[1])
            boxes = torch.cat([self._last_boxes[:, :number], boxes[:, :number]])
        self._last_boxes = outputs.pred_boxes[-1:].float().clone()  # a view would keep the graph
        self._add("moved", (boxes[1:] - boxes[:-1]).abs().amax(-1).sum(0))  # (Q,)
        self._add("pairs", boxes.new_full((), len(boxes) - 1))
        best = self.classification.probabilities(outputs.logits).amax(1)  # (B, C)
        is_present = torch.zeros_like(best, dtype=torch.bool)
        for image, target in zip(is_present, labels, strict=True):
            image[target["class_labels"].to(best.device)] = True
        self._add("present", is_present.float().sum(0))  # (C,)
        self._add("found", (is_present & (best > ALIVE)).float().sum(0))

    def add_step(self, gradient_norm: Tensor | float) -> None:
        """Add the gradient norm of an optimizer step, before clipping."""
        self._norms.append(torch.as_tensor(gradient_norm).detach().float())

    def add_skipped_step(self) -> None:
        """Count a step that was skipped because its loss or gradient wasn't finite."""
        self._num_skipped += 1

    def report(self) -> list[str]:
        """Return the lines of a report since the last one; all processes must call this."""
        own = {name: value.cpu() for name, value in self._sums.items()}
        shares = gather_from_processes(own)
        sums: dict[str, Tensor] = {}
        for share in shares:
            for name, value in share.items():
                sums[name] = _added(sums[name], value) if name in sums else value
        lines = []
        if sums:
            lines += self._describe_loss(sums, len(self._norms) * len(shares))
        if self._norms:
            lines += self._describe_gradients(torch.stack(self._norms).cpu())
        if sums:
            lines += _describe_boxes(sums["moved"], sums["pairs"])
            lines += self._describe_classes(sums["present"], sums["found"])
        if self._num_skipped:
            lines.append(
                f"{self._num_skipped} steps were skipped because their loss or gradient wasn't "
                "finite. A few are harmless; if their number grows, use a lower learning rate, or "
                "bfloat16 or float32 instead of float16."
            )
        self._reset()
        return lines

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = _added(self._sums[name], value) if name in self._sums else value.clone()

    def _describe_loss(self, sums: dict[str, Tensor], num_steps: int) -> list[str]:
        """Shares of the terms in the loss, summed over layers."""
        terms = {name: sums[name].item() for name in self.weights if name in sums}
        total = sum(terms.values())
        if total == 0:
            return ["The loss is 0: check the weights of its terms."]
        shares = {name: value / total for name, value in terms.items()}
        mean = f" {total / num_steps:.4g}" if num_steps else ""
        listed = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        lines = [f"Loss{mean}: {listed}, summed over layers."]
        lines += [
            f"{name} dominates the loss, so the other terms have little effect. Check its weight "
            f"({self.weights[name]:g}) and the labels."
            for name, share in shares.items()
            if share > ONE_SIDED and len(shares) > 1
        ]
        return lines

    def _describe_gradients(self, norms: Tensor) -> list[str]:
        """Median and maximum of the gradient norms (steps,), clipping, spikes and growth."""
        median, highest = norms.median().item(), norms.max().item()
        lines = [f"Gradient norm: median {median:.3g}, highest {highest:.3g}."]
        if self.max_norm is not None:
            clipped = (norms > self.max_norm).float().mean().item()
            lines[0] += f" Clipped at {self.max_norm:g} in {clipped:.0%} of {len(norms)} steps."
        first, second = norms[: len(norms) // 2], norms[len(norms) // 2 :]
        if median == 0:
            lines.append("The gradient is 0: check which parameters are frozen.")
        elif highest > SPIKE * median:
            lines.append(
                f"The highest gradient norm is {highest / median:.0f} times the median. Check the "
                "images of that step and the clipping (0.1 in the papers)."
            )
        if len(first) and second.median() > GROWTH * first.median() > 0:
            lines.append(
                f"The gradient norm increased {second.median() / first.median():.1f} times within "
                "the epoch. This is normal during warm-up; otherwise use a lower learning rate."
            )
        return lines

    def _describe_classes(self, present: Tensor, found: Tensor) -> list[str]:
        """Classes without detections, from numbers of images (C,) with class and detection."""
        num_present = int((present > 0).sum())
        if num_present == 0:
            return ["No image has an object: check the labels and their file."]
        dead = ((present > 0) & (found == 0)).nonzero().flatten().tolist()
        if not dead:
            return [
                f"Classes: all {num_present} classes scored above {ALIVE} in images that have them."
            ]
        dead.sort(key=lambda index: -present[index].item())
        named = [f"{self.id2label[i]} ({present[i].item():.0f} images)" for i in dead]
        return [
            f"Dead classes: {len(dead)} of {num_present} never scored above {ALIVE} in an image "
            f"that has them: {some_of(named, NAMED)}. This is normal in the first epochs and for "
            "classes with few images. Later check the labels and names of these classes, and add "
            "images."
        ]


def _added(one: Tensor, other: Tensor) -> Tensor:
    """The sum of two numbers, or of the first queries that both have."""
    if one.ndim:
        number = min(len(one), len(other))
        one, other = one[:number], other[:number]
    return one + other


def _describe_boxes(moved: Tensor, num_pairs: Tensor) -> list[str]:
    """How far the queries' boxes (Q,) move between images."""
    if num_pairs == 0:
        return []
    steps = moved / num_pairs
    num_still, num_queries = int((steps < STILL).sum()), len(steps)
    if num_still < COLLAPSED * num_queries:
        return [
            f"Boxes: a query's box moves by {steps.median():.2g} of the image (median) between "
            f"images; {num_still} of {num_queries} queries don't move."
        ]
    return [
        f"Query collapse: {num_still} of {num_queries} queries predict the same box for all images "
        f"(they move by less than {STILL} of the image). This is normal in the first epochs. Later "
        "check the learning rate (1e-4 with a batch size of 16 to 32 in the papers, 1e-5 for the "
        "backbone), that the backbone's pretrained weights were loaded, and that images are "
        "normalized as the backbone requires."
    ]


def find_nonfinite_loss(
    batch: Mapping[str, Any],
    outputs: ObjectDetectionOutput | None,
    images: Sequence[int] = (),
) -> str | None:
    """Describe what isn't finite in a step's loss; None if the loss is finite on all processes.

    All processes must call this between forward and backward pass, and get the same result, so
    that they stop or skip the step together.

    Args:
        batch: `pixel_values` (B, 3, H, W) and `labels`, targets per image with `image_id`.
        outputs: the model's outputs with `loss` and `loss_dict`; None if the matcher raised
            because predictions aren't finite.
        images: indices of images in the batch that the matcher's error names.
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
    """Describe what isn't finite in this process's batch, and name the images."""
    labels = batch["labels"]
    finite_pixels = batch["pixel_values"].flatten(1).isfinite().all(1).tolist()
    bad_pixels = [image for image, is_finite in enumerate(finite_pixels) if not is_finite]
    if bad_pixels:
        names = _image_names(labels, bad_pixels)
        return f"NaN or infinity in the pixels of {names}: check how images are read."
    where = "the predictions"
    if outputs is not None:
        terms = [name for name, value in outputs.loss_dict.items() if not value.isfinite()]
        where = f"the loss ({some_of(terms, NAMED)})"
    names = _image_names(labels, images or range(len(labels)))
    return (
        f"NaN or infinity in {where} of {names}, whose pixels are finite. Common causes: a high "
        "learning rate, gradients that aren't clipped (at norm 0.1 in the papers), overflow in "
        "float16, a pixel_mask that the model can't use."
    )


def describe_nonfinite_gradients(model: nn.Module) -> str:
    """Name the parameters whose gradients aren't finite, after the backward pass of a finite loss.

    Don't call this with a gradient scaler for float16, which skips such steps itself.
    """
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    names = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    found = f"the gradients of {len(names)} of {len(gradients)} parameters aren't"
    # Large gradients can be finite when the sum of their squares isn't.
    found = f"{found}: {some_of(names, NAMED)}" if names else "the norm of all gradients isn't"
    return (
        f"The loss is finite, but {found}. Common causes: overflow in float16, a high learning "
        "rate, a pixel_mask without real pixels."
    )


def _image_names(labels: Sequence[Mapping[str, Tensor]], images: Sequence[int]) -> str:
    """Name images of a batch by their ids, or by their indices if they have none."""
    ids = [
        str(int(labels[i]["image_id"])) if "image_id" in labels[i] else f"number {i} of the batch"
        for i in images
    ]
    return f"image {ids[0]}" if len(ids) == 1 else f"images {some_of(ids, NAMED)}"
