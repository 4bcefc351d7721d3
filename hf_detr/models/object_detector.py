"""The skeleton of every detector: heads and a loss on a `DetectionTransformer`.

A variant subclasses it and fills in the hooks: which heads read classes and boxes off the states.
"""

from abc import abstractmethod
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..losses.criterion import DetectionCriterion, FinalLayerMatches, LossPart
from ..losses.loss_terms import LossNormalizers, count_loss_normalizers
from ..losses.targets import check_sizes
from .detection_transformer import DetectionTransformer, Labels, given
from .heads import resize_class_head
from .outputs import DetectionModelOutput, ObjectDetectionOutput, box_references
from .parameter_kinds import PARAMETER_KINDS
from .pretrained_model import DetectionPreTrainedModel

DETECTOR_FIELDS = frozenset(field.name for field in fields(ObjectDetectionOutput))


class ObjectDetector(DetectionPreTrainedModel):
    """Heads and loss on a `DetectionTransformer`, which a subclass puts at `self.model`.

    Args:
        config: configuration of the variant.
    """

    model: DetectionTransformer
    criterion: DetectionCriterion

    @abstractmethod
    def predict(
        self, layer_states: Tensor, reference_points: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        """Hook: logits (N, B, Q, C') and boxes (N, B, Q, 4) of the last N decoder layers.

        Given are their states (N, B, Q, D) and, where there are any, their references.
        """

    def class_heads(self) -> list[nn.Linear]:
        """Hook: class heads of the decoder's layers; unless overridden, those named `class_…`."""
        is_class_head = PARAMETER_KINDS["classes"].search
        return [
            module
            for name, module in self.named_modules()  # which returns each module once
            if isinstance(module, nn.Linear) and is_class_head(name)
        ]

    @property
    def loss_function(self) -> DetectionCriterion:
        """The criterion, by transformers' name."""
        return self.criterion

    @loss_function.setter
    def loss_function(self, value: Any) -> None:
        raise AttributeError(
            "loss_function can't be set: transformers' losses have other arguments. Replace "
            "`model.criterion`, or its `matcher` or `weights`, or override `forward`."
        )

    def resize_classes(self, id2label: dict[int, str]) -> list[str]:
        """Change the classes, for example before fine-tuning on other data.

        Classes whose name the model knows keep their weights and `class_thresholds`, also if only
        capital letters differ. The others begin as the mean of all old classes, which tells objects
        from background.

        Args:
            id2label: names of the new classes 0 … C-1.

        Returns:
            The names of the classes that keep their weights.

        Raises:
            ValueError: if the classes aren't numbered from 0 without gaps.
        """
        if sorted(id2label) != list(range(len(id2label))) or not id2label:
            raise ValueError(f"id2label is {id2label}; expected names of 0, 1, … without gaps.")
        names = [name for _, name in sorted(id2label.items())]
        exact = {name: label for label, name in self.config.id2label.items()}
        old = {name.casefold(): label for name, label in exact.items()} | exact
        known = [old.get(name, old.get(name.casefold())) for name in names]
        every = sorted(set(old.values()))
        sources = [every if label is None else [label] for label in known]
        classification = self.criterion.classification
        for extra in range(classification.num_labels, classification.num_logits):  # "no object"
            sources.append([extra])
        for head in self.class_heads():
            resize_class_head(head, sources)
        if self.model.denoising is not None:
            self.model.denoising.resize_classes(sources[: len(names)])
        classification.num_labels = len(names)
        thresholds = self.config.class_thresholds or {}
        old_names = [self.config.id2label.get(label) for label in known]
        kept = {
            new: thresholds[was]
            for new, was in zip(names, old_names, strict=True)
            if was in thresholds
        }
        self.config.class_thresholds = kept or None
        self.config.id2label = dict(enumerate(names))
        self.config.label2id = {name: label for label, name in enumerate(names)}
        return [name for name, label in zip(names, known, strict=True) if label is not None]

    def proposal_labels(self, labels: Labels) -> Labels:
        """Hook: what the encoder's proposals learn; unless overridden, "some object", class 0."""
        return [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in labels]

    def forward(
        self,
        pixel_values: Tensor,
        pixel_mask: Tensor | None = None,
        *,
        labels: Labels | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        loss_normalizers: LossNormalizers | None = None,
    ) -> ObjectDetectionOutput | tuple:
        """Detect objects; with labels, also compute the loss.

        Args:
            pixel_values, pixel_mask, output_hidden_states, output_attentions, return_dict: as in
                `DetectionTransformer.forward`.
            labels: per image a dict with `class_labels` (n,), integers in 0 … C-1, and `boxes`
                (n, 4) as (cx, cy, w, h) in [0, 1] relative to the image without its padding, whose
                (height, width) in pixels is compared with `pixel_mask` if there is a `size` (2,).
            loss_normalizers: counts of a larger batch that this one is a part of, from
                `count_loss_normalizers`; None: of this batch.

        Raises:
            ValueError, TypeError: if images or labels can't be used.
        """
        outputs = self.model(
            pixel_values,
            pixel_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            labels=labels,
        )
        output, _ = self.detect(outputs, labels, output_attentions, loss_normalizers)
        if labels is not None:
            check_sizes(labels, tuple(pixel_values.shape[-2:]), pixel_mask)
        return output if given(return_dict, self.config.return_dict) else output.to_tuple()

    def detect(
        self,
        outputs: DetectionModelOutput,
        labels: Labels | None,
        output_attentions: bool | None,
        loss_normalizers: LossNormalizers | None = None,
    ) -> tuple[ObjectDetectionOutput, FinalLayerMatches | None]:
        """Predictions, and if there are labels the loss and the matches, from queries' states."""
        every_layer = labels is not None and self.config.auxiliary_loss
        layers = slice(None) if every_layer else slice(-1, None)
        logits, pred_boxes = self._predict_layers(
            layers,
            outputs.intermediate_hidden_states,
            box_references(outputs),
        )
        states = {name: value for name, value in outputs.items() if name in DETECTOR_FIELDS}
        if not output_attentions:
            states.pop("reference_points", None)
        loss = loss_dict = matches = auxiliary_outputs = None
        if labels is not None:
            parts = self._loss_parts(LossPart(logits, pred_boxes), outputs, labels, layers)
            loss, loss_dict, matches = self.criterion.sum_parts(parts, labels, loss_normalizers)
            if self.config.auxiliary_loss:
                auxiliary_outputs = [
                    {"logits": layer_logits, "pred_boxes": layer_boxes}
                    for layer_logits, layer_boxes in zip(logits[:-1], pred_boxes[:-1], strict=True)
                ]
        output = ObjectDetectionOutput(
            loss=loss,
            loss_dict=loss_dict,
            logits=logits[-1],
            pred_boxes=pred_boxes[-1],
            auxiliary_outputs=auxiliary_outputs,
            **states,
        )
        return output, matches

    def count_loss_normalizers(self, labels: Labels) -> LossNormalizers:
        """What the losses of the parts of a larger batch are divided by, for accumulated gradients.

        The sum of the parts' losses is then the loss of the whole batch, but for denoising, whose
        noise and number of queries are those of each part. All processes must call
        this at the same time, each with the labels of its own parts.

        Args:
            labels: of all parts; of each image only `class_labels` is needed.
        """
        counts = [len(target["class_labels"]) for target in labels]
        return count_loss_normalizers(counts, self.model.num_queries, self.device)

    def _predict_layers(
        self, layers: slice, states: Tensor, references: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, Tensor]:
        return self.predict(states[layers], None if references is None else references[layers])

    def _loss_parts(
        self, own: LossPart, outputs: DetectionModelOutput, labels: Labels, layers: slice
    ) -> list[LossPart]:
        """The detector's own predictions, those of training queries, and the proposals."""
        parts = [own]
        if (training := outputs.training_queries) is not None:
            states = outputs.training_states
            predicted = self._predict_layers(layers, states.layer_states, box_references(states))
            own = replace(own, weight=training.own_weight)
            parts = [own, *training.loss_parts(*predicted)]
        if outputs.enc_outputs_class is not None:
            parts.append(
                LossPart(
                    outputs.enc_outputs_class[None],
                    outputs.enc_outputs_coord_logits.sigmoid()[None],
                    suffix="_enc",
                    labels=self.proposal_labels(labels),
                    source="the encoder's proposals",
                )
            )
        return parts
