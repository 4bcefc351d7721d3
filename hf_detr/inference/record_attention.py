"""Records predictions and attention of a detector in one forward pass, for the plots."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.image_utils import ImageInput

from ..image_processing.image_processor import DetectionImageProcessor
from ..layers.attention import ProjectedAttention, multi_head_attention
from ..models.detection_transformer import DetectionTransformer
from ..models.object_detector import ObjectDetector
from ..models.outputs import (
    DetectionModelOutput,
    ObjectDetectionOutput,
    box_references,
    split_sampling,
)
from ..models.segmentation import Segmenter
from ..ops.box_ops import box_cxcywh_to_xyxy
from .attention_record import AttentionRecord, Layers
from .prediction import in_eval_mode, read_for


def record_attention(
    model: ObjectDetector | Segmenter,
    processor: DetectionImageProcessor,
    images: ImageInput,
    attentions: bool = True,
    annotations: Sequence[dict[str, Any]] | None = None,
) -> list[AttentionRecord]:
    """Run a detector on a batch of images and record predictions and attention.

    Args:
        model: a detector or segmentation model, in training or eval mode.
        processor: the model's image processor.
        images: one image or several, in any format that the image processor supports.
        attentions: whether to record attention; predictions alone need much less memory.
        annotations: of each image, as for the image processor, to also record the queries that
            exist in training alone: those of `add_denoising`, which start from noised annotations,
            or of `add_query_groups`. They follow the detector's own queries.

    Returns:
        A record per image.

    Raises:
        TypeError: if the model isn't a model of hf_detr.
        ValueError: if an image is invalid, or the model has no queries for annotations.
    """
    detector = _detector(model)
    batch = read_for(processor, images)
    inputs = processor(
        batch, annotations=annotations, input_data_format="channels_first", return_tensors="pt"
    )
    labels = inputs.pop("labels", None)
    with torch.no_grad(), in_eval_mode(model), _separate_parts(detector) as parts:
        with _training_queries(detector.model, labels is not None):
            states = detector.model(
                **inputs.to(model.device, model.dtype),
                labels=labels,
                output_attentions=attentions,
                return_dict=True,
                output_feature_maps=True,
            )
        outputs, _ = detector.detect(states, None, attentions)
        num_queries = outputs.logits.shape[1]
        if annotations is not None:
            _add_training_queries(detector, states, outputs)
    scores, classes = detector.criterion.classification.probabilities(outputs.logits).max(-1)
    pyramid = states.pyramid
    each: dict[str, Any] = {
        "scores": scores,
        "labels": classes,
        "boxes_xyxy": box_cxcywh_to_xyxy(outputs.pred_boxes.float()),
        "valid_ratios": pyramid.valid_ratios,
        "token_centers": pyramid.token_centers,
        "encoder_attentions": outputs.encoder_attentions,
        "encoder_locations": outputs.encoder_sampling_locations,
        "cross_attentions": outputs.cross_attentions,
        "decoder_locations": outputs.decoder_sampling_locations,
        "content_attentions": tuple(content for content, _ in parts) if attentions else None,
        "place_attentions": tuple(place for _, place in parts) if attentions else None,
        "reference_points": outputs.reference_points,
    }
    records = []
    for index, image in enumerate(batch):
        own = {name: _of_image(value, index) for name, value in each.items()}
        height, width = image.shape[1:]
        own["boxes_xyxy"] = own["boxes_xyxy"] * torch.tensor([width, height, width, height])
        records.append(
            AttentionRecord(
                _in_unit_range(image),
                detector.config.id2label,
                num_queries,
                spatial_shapes=pyramid.spatial_shapes,
                **own,
            )
        )
    return records


def query_boxes(
    model: ObjectDetector | Segmenter,
    processor: DetectionImageProcessor,
    images: Iterable[ImageInput],
    progress: bool = True,
) -> Tensor:
    """Predict the boxes of all object queries in all images, as in Figure 7 of DETR's paper.

    Args:
        model, processor: as in `record_attention`.
        images: N images, which run one by one.
        progress: whether to show a progress bar on a terminal.

    Returns:
        (N, Q, 4) boxes as (cx, cy, w, h) in [0, 1], float32.

    Raises:
        TypeError: if the model isn't a model of hf_detr.
        ValueError: if the model is two-stage, or there are no images.
    """
    detector = _detector(model)
    if getattr(detector.model, "query_position_embeddings", None) is None:
        raise ValueError(
            "The object queries of this two-stage model depend on the image; expected a model with "
            "learned queries."
        )
    boxes = []
    with torch.no_grad(), in_eval_mode(model):
        for image in tqdm(images, desc="boxes", unit="image", disable=None if progress else True):
            inputs = processor(image, return_tensors="pt").to(model.device, model.dtype)
            boxes.append(detector(**inputs, return_dict=True).pred_boxes.float().cpu())
    if not boxes:
        raise ValueError("There are no images; expected at least one.")
    return torch.cat(boxes)


@contextmanager
def _training_queries(transformer: DetectionTransformer, are_wanted: bool) -> Iterator[None]:
    """Let the model make the queries that only training has; its parts stay in eval mode."""
    transformer.training = are_wanted
    try:
        yield
    finally:
        transformer.training = False


def _add_training_queries(
    detector: ObjectDetector, states: DetectionModelOutput, outputs: ObjectDetectionOutput
) -> None:
    """Append the queries that exist in training alone to a detector's outputs."""
    training = states.training_states
    if training is None:
        raise ValueError(
            "The model has no queries for annotations; call model.add_denoising(100) first, or "
            "leave out annotations."
        )
    references = box_references(training)
    logits, pred_boxes = detector.predict(
        training.layer_states[-1:], None if references is None else references[-1:]
    )
    weights, locations = split_sampling(training.cross_attentions)
    outputs.logits = torch.cat([outputs.logits, logits[-1]], dim=1)
    outputs.pred_boxes = torch.cat([outputs.pred_boxes, pred_boxes[-1]], dim=1)
    for name, others, axis in (
        ("cross_attentions", weights, 1 if locations else 2),
        ("decoder_sampling_locations", locations, 1),
        ("reference_points", training.reference_points, 1),
    ):
        layers = getattr(outputs, name)
        if layers is not None:
            pairs = zip(layers, others, strict=True)
            outputs[name] = tuple(torch.cat(pair, dim=axis) for pair in pairs)


def _detector(model: Any) -> ObjectDetector:
    if isinstance(model, Segmenter):
        return model.detector
    if not isinstance(model, ObjectDetector):
        raise TypeError(
            f"model is a {type(model).__module__}.{type(model).__name__}; expected a model of "
            "hf_detr, which loads the same files, such as hf_detr.DetrForObjectDetection."
        )
    return model


@contextmanager
def _separate_parts(detector: ObjectDetector) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect content and spatial attention of each decoder layer of Conditional DETR."""
    parts: list[tuple[Tensor, Tensor]] = []
    own_thread = threading.get_ident()

    def record_parts(attention: ProjectedAttention, arguments: tuple) -> None:
        query, key, _, mask, return_weights = arguments
        # Other threads may use the same model.
        if return_weights and threading.get_ident() == own_thread:
            heads = (attention.num_heads, 2, -1)  # in each head the first half is content
            content, place = query.unflatten(-1, heads).unbind(-2)
            zeros = torch.zeros_like(content)
            parts.append(
                tuple(
                    # Zeros in the other half keep keys and scale unchanged.
                    multi_head_attention(
                        torch.stack(halves, dim=-2).flatten(-3),
                        key,
                        key,
                        attention.num_heads,
                        mask,
                        return_weights=True,
                    )[1]
                    for halves in ((content, zeros), (zeros, place))
                )
            )

    with ExitStack() as stack:
        for layer in detector.model.decoder.layers:
            if type(layer.encoder_attn) is ProjectedAttention:  # Conditional DETR
                handle = layer.encoder_attn.register_forward_pre_hook(record_parts)
                stack.callback(handle.remove)
        yield parts


def _in_unit_range(image: Tensor) -> Tensor:
    """Convert an image to uint8 or floats in [0, 1]; inputs of the processor may be neither."""
    if not image.is_floating_point():
        return image.cpu()
    low, high = (float(value) for value in image.aminmax())
    return (image / 255 if low >= 0 and high > 1 else image).clamp(0, 1).cpu()


def _of_image(value: Tensor | Layers | None, index: int) -> Any:
    """Select one image of batched tensors; None if there are none."""
    if isinstance(value, Tensor):
        own = value[index].cpu()
        return own.float() if own.is_floating_point() else own
    return tuple(_of_image(tensor, index) for tensor in value) if value else None
