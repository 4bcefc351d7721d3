"""Tests that records equal the forward pass and recording doesn't change the model."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from PIL import Image

from hf_detr import DetrForSegmentation
from hf_detr.inference.record_attention import query_boxes, record_attention

from ..some_attention_records import make_processor, some_images
from ..tiny import SAMPLED, SOFTMAX, tiny_config, tiny_detector


def test_record_equals_the_forward_pass(variant: str) -> None:
    """Scores, boxes in pixels, attention and reference points equal the model's outputs."""
    model, processor = tiny_detector(variant), make_processor(variant)
    images = some_images()
    inputs = processor(images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    sizes_hw = [image.shape[1:] for image in images]
    detections = processor.post_process_object_detection(outputs, -1, sizes_hw)
    for index, record in enumerate(record_attention(model, processor, images)):
        assert torch.equal(record.image, images[index])
        torch.testing.assert_close(record.scores.max(), detections[index]["scores"].max())
        best, own = detections[index]["scores"].argmax(), record.scores.argmax()
        torch.testing.assert_close(detections[index]["boxes"][best], record.boxes_xyxy[own])
        for name in ("encoder_attentions", "cross_attentions"):
            for layer, weights in enumerate(getattr(outputs, name)):
                torch.testing.assert_close(getattr(record, name)[layer], weights[index])
        if variant not in SOFTMAX:
            torch.testing.assert_close(
                record.reference_points[2], outputs.reference_points[2][index]
            )


def test_model_is_unchanged(variant: str) -> None:
    """The model runs in eval mode; afterwards modes are restored and hooks removed."""
    model = tiny_detector(variant, dropout=0.5).train()
    model.model.encoder.eval()
    modes = [module.training for module in model.modules()]
    processor, image = make_processor(variant), some_images()[0]
    [first], [second] = (
        record_attention(model, processor, image),
        record_attention(model, processor, image),
    )
    assert torch.equal(first.boxes_xyxy, second.boxes_xyxy)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.model.decoder.modules())


@pytest.mark.parametrize(
    ("variant", "dtype"), [("conditional_detr", torch.bfloat16), ("deformable_detr", torch.float16)]
)
def test_half_precision(variant: str, dtype: torch.dtype) -> None:
    """Records of models in half precision are float32 and close to those of float32 models."""
    image, processor = some_images()[0], make_processor(variant)
    [exact] = record_attention(tiny_detector(variant), processor, image)
    [record] = record_attention(tiny_detector(variant).to(dtype), processor, image)
    assert record.boxes_xyxy.dtype == record.encoder_attentions[0].dtype == torch.float32
    torch.testing.assert_close(record.boxes_xyxy, exact.boxes_xyxy, atol=8, rtol=0)


def test_several_threads() -> None:
    """Every thread records the attention of its own image."""
    model, processor = tiny_detector("conditional_detr"), make_processor("conditional_detr")
    images = [image[:, :64, :64] for image in some_images()]
    expected = [record_attention(model, processor, image)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        indices = [index % len(images) for index in range(24)]
        found = list(
            pool.map(lambda index: record_attention(model, processor, images[index])[0], indices)
        )
    for index, one in zip(indices, found, strict=True):
        for name in ("content_attentions", "place_attentions"):
            got, wanted = getattr(one, name), getattr(expected[index], name)
            assert len(got) == len(wanted)
            for layer, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(layer, other)


def test_without_attention(variant: str) -> None:
    """Without attention there are predictions only, and attention raises."""
    image = Image.new("RGB", (60, 40))
    model = tiny_detector(variant)
    [record] = record_attention(model, make_processor(variant), image, attentions=False)
    assert record.encoder_attentions is None and len(record.best_queries(0.0)) == 7
    method = record.query_points if variant in SAMPLED else record.query_maps
    with pytest.raises(ValueError, match="attentions=True"):
        method([0])


def test_segmentation_models() -> None:
    """The detector of a segmentation model is recorded; models of transformers are rejected."""
    torch.manual_seed(0)
    model = DetrForSegmentation(tiny_config("detr", d_model=128, encoder_attention_heads=8)).eval()
    [record] = record_attention(model, make_processor("detr"), some_images()[0])
    assert record.query_maps([0]).ndim == 4
    other = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"]
            ),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
        )
    )
    with pytest.raises(TypeError, match=r"transformers\..*expected a model of hf_detr"):
        record_attention(other, make_processor("detr"), some_images()[0])


def test_query_boxes() -> None:
    """Boxes of all queries and images, in order and equal to those of single images."""
    model, processor = tiny_detector("conditional_detr"), make_processor("conditional_detr")
    boxes = query_boxes(model, processor, iter(some_images()))
    assert boxes.shape == (2, 7, 4)
    with torch.no_grad():
        alone = model(**processor(some_images()[1], return_tensors="pt")).pred_boxes[0]
    torch.testing.assert_close(boxes[1], alone)
    with pytest.raises(ValueError, match="There are no images"):
        query_boxes(model, processor, [])
    two_stage = tiny_detector("deformable_detr", two_stage=True, with_box_refine=True)
    with pytest.raises(ValueError, match="two-stage.*learned queries"):
        query_boxes(two_stage, make_processor("deformable_detr"), some_images())


@pytest.mark.parametrize("attentions", [True, False])
def test_queries_of_training(variant: str, attentions: bool) -> None:
    """Those that start from annotations follow the detector's own, which don't change."""
    model, processor = tiny_detector(variant), make_processor(variant)
    images = some_images()
    annotations = [
        {
            "image_id": index,
            "annotations": [
                {"bbox": [8, 16, 40, 64], "category_id": label, "area": 2560, "iscrowd": 0}
                for label in labels
            ],
        }
        for index, labels in enumerate(([1, 3], [0]))
    ]
    alone = record_attention(model, processor, images, attentions)
    model.add_denoising(4, label_noise_ratio=0, box_noise_scale=0)
    model.eval()
    records = record_attention(model, processor, images, attentions, annotations)
    assert not any(module.training for module in model.modules())
    for record, without in zip(records, alone, strict=True):
        assert record.num_queries == without.num_queries == len(without.scores) == 7
        assert len(record.scores) == len(record.boxes_xyxy) == 7 + 8  # 2 groups of 2 kinds of 2
        torch.testing.assert_close(record.boxes_xyxy[:7], without.boxes_xyxy)
        assert record.best_queries(0.0) == without.best_queries(0.0)
    if attentions:
        record, without = records[0], alone[0]
        axis = 0 if record.decoder_locations else 1
        for layer, weights in enumerate(without.cross_attentions):
            assert record.cross_attentions[layer].shape[axis] == 15
            own = record.cross_attentions[layer].narrow(axis, 0, 7)
            torch.testing.assert_close(own, weights)
        if variant not in SOFTMAX:
            start = torch.tensor([28 / 192, 48 / 128])  # without noise, the centre of the box
            references = record.reference_points[0][7:, :2]
            torch.testing.assert_close(references, start.expand(8, 2), atol=2e-3, rtol=0)


def test_annotations_without_queries_for_them() -> None:
    """A model without training queries says how to get them."""
    annotations = {"image_id": 1, "annotations": []}
    with pytest.raises(ValueError, match="add_denoising"):
        record_attention(
            tiny_detector(), make_processor("detr"), some_images()[0], annotations=[annotations]
        )
