"""Run a detector and keep where it looked: one forward pass with all its attention.

`observe` gives an `Observation` of each image, which `plots` draws.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.image_utils import ImageInput

from .attention import ProjectedAttention, multi_head_attention
from .box_ops import box_cxcywh_to_xyxy
from .detection_transformer import ObjectDetector
from .feature_pyramid import token_centers
from .image_processing_detr import DetrImageProcessor
from .observation import Layers, Observation
from .prediction import in_eval_mode, read_for
from .segmentation import Segmenter


def observe(
    model: ObjectDetector | Segmenter,
    processor: DetrImageProcessor,
    images: ImageInput,
    attentions: bool = True,
) -> list[Observation]:
    """Run a detector on images, as one batch, and keep where it looked.

    Args:
        model: of any variant, with or without masks; on its device, in any mode.
        processor: the model's.
        images: one image or several, in any form that the processor takes.
        attentions: keep attention too; without it there are predictions only, which takes much
            less memory.

    Raises:
        TypeError: if the model isn't one of hf_detr's.
        ValueError: if an image can't be used.
    """
    detector = _detector(model)
    pictures = read_for(processor, images)
    inputs = processor(pictures, input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad(), in_eval_mode(model), _separate_parts(detector) as parts:
        states = detector.model(
            **inputs.to(model.device, model.dtype),
            output_attentions=attentions,
            return_dict=True,
            output_feature_maps=True,
        )
        outputs, _ = detector.detect(states, None, attentions)
    scores, labels = detector.criterion.classification.probabilities(outputs.logits).max(-1)
    pyramid = states.pyramid
    each: dict[str, Any] = {
        "scores": scores,
        "labels": labels,
        "boxes_xyxy": box_cxcywh_to_xyxy(outputs.pred_boxes.float()),
        "valid_ratios": pyramid.valid_ratios,
        "token_centers": token_centers(pyramid),
        "encoder_attentions": outputs.encoder_attentions,
        "encoder_locations": outputs.encoder_sampling_locations,
        "cross_attentions": outputs.cross_attentions,
        "decoder_locations": outputs.decoder_sampling_locations,
        "content_attentions": tuple(content for content, _ in parts) if attentions else None,
        "place_attentions": tuple(place for _, place in parts) if attentions else None,
        "reference_points": outputs.reference_points,
    }
    observations = []
    for index, picture in enumerate(pictures):
        own = {name: _of_image(value, index) for name, value in each.items()}
        height, width = picture.shape[1:]
        own["boxes_xyxy"] = own["boxes_xyxy"] * torch.tensor([width, height, width, height])
        observations.append(
            Observation(
                _to_draw(picture),
                detector.config.id2label,
                spatial_shapes=pyramid.spatial_shapes,
                **own,
            )
        )
    return observations


def query_boxes(
    model: ObjectDetector | Segmenter,
    processor: DetrImageProcessor,
    images: Iterable[ImageInput],
    progress: bool = True,
) -> Tensor:
    """Every object query's box in every image, whatever it scores; DETR's Figure 7 draws them.

    Args:
        model, processor: as above.
        images: any number of images, which run one by one.
        progress: show a progress bar, on a terminal.

    Returns:
        (N, Q, 4) boxes as (cx, cy, w, h) in [0, 1], float32.

    Raises:
        TypeError: if the model isn't one of hf_detr's.
        ValueError: if its queries aren't learned, or there are no images.
    """
    detector = _detector(model)
    if getattr(detector.model, "query_position_embeddings", None) is None:
        raise ValueError(
            "this model's object queries start from each image's own proposals (two stages), so "
            "none of them has a place that it prefers; use a model with learned queries."
        )
    boxes = []
    with torch.no_grad(), in_eval_mode(model):
        for image in tqdm(images, desc="boxes", unit="image", disable=None if progress else True):
            inputs = processor(image, return_tensors="pt").to(model.device, model.dtype)
            boxes.append(detector(**inputs, return_dict=True).pred_boxes.float().cpu())
    if not boxes:
        raise ValueError("there are no images; give at least one.")
    return torch.cat(boxes)


def _detector(model: Any) -> ObjectDetector:
    if isinstance(model, Segmenter):
        return model.detector
    if not isinstance(model, ObjectDetector):
        raise TypeError(
            f"the model is a {type(model).__module__}.{type(model).__name__}; give a detector of "
            "hf_detr, which loads the same files: hf_detr.DetrForObjectDetection, for example."
        )
    return model


@contextmanager
def _separate_parts(detector: ObjectDetector) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Within it, decoder layers that compare content and place separately add both to a list."""
    parts: list[tuple[Tensor, Tensor]] = []
    own_thread = threading.get_ident()

    def keep(attention: ProjectedAttention, arguments: tuple) -> None:
        query, key, _, mask, return_weights = arguments
        # Other threads' images pass through the same model, a web page's for example.
        if return_weights and threading.get_ident() == own_thread:
            heads = (attention.num_heads, 2, -1)  # within a head first content, then place
            content, place = query.unflatten(-1, heads).unbind(-2)
            nothing = torch.zeros_like(content)
            parts.append(
                tuple(
                    # Zeros in the other half: the keys and the scale stay the model's own.
                    multi_head_attention(
                        torch.stack(halves, dim=-2).flatten(-3),
                        key,
                        key,
                        attention.num_heads,
                        mask,
                        return_weights=True,
                    )[1]
                    for halves in ((content, nothing), (nothing, place))
                )
            )

    with ExitStack() as stack:
        for layer in detector.model.decoder.layers:
            if type(layer.encoder_attn) is ProjectedAttention:  # the layer projects by parts
                handle = layer.encoder_attn.register_forward_pre_hook(keep)
                stack.callback(handle.remove)
        yield parts


def _to_draw(picture: Tensor) -> Tensor:
    """uint8, or floats in [0, 1]: what the processor may take as it is needn't be."""
    if not picture.is_floating_point():
        return picture.cpu()
    low, high = (float(value) for value in picture.aminmax())
    return (picture / 255 if low >= 0 and high > 1 else picture).clamp(0, 1).cpu()


def _of_image(value: Tensor | Layers | None, index: int) -> Any:
    """One image's part of tensors whose first axis is the batch; None of nothing."""
    if isinstance(value, Tensor):
        own = value[index].cpu()
        return own.float() if own.is_floating_point() else own
    return tuple(_of_image(tensor, index) for tensor in value) if value else None
