"""Observing leaves the model as it was and keeps what its forward pass gave."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from PIL import Image

from hf_detr import DetrForSegmentation
from hf_detr.observing import observe, query_boxes

from .some_observations import make_processor, some_images
from .tiny import tiny_config, tiny_detector


def test_observation_is_the_forward_pass(variant: str) -> None:
    """Scores, boxes in pixels, attention and references equal those of an ordinary call."""
    model, processor = tiny_detector(variant), make_processor(variant)
    images = some_images()
    inputs = processor(images, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, output_attentions=True)
    sizes_hw = [image.shape[1:] for image in images]
    detections = processor.post_process_object_detection(outputs, -1, sizes_hw)
    for index, seen in enumerate(observe(model, processor, images)):
        assert torch.equal(seen.image, images[index])
        torch.testing.assert_close(seen.scores.max(), detections[index]["scores"].max())
        best, own = detections[index]["scores"].argmax(), seen.scores.argmax()
        torch.testing.assert_close(detections[index]["boxes"][best], seen.boxes_xyxy[own])
        for name in ("encoder_attentions", "cross_attentions"):
            for layer, weights in enumerate(getattr(outputs, name)):
                torch.testing.assert_close(getattr(seen, name)[layer], weights[index])
        if variant != "detr":
            torch.testing.assert_close(seen.reference_points[2], outputs.reference_points[2][index])


def test_model_is_as_it_was(variant: str) -> None:
    """Dropout is off while it looks; afterwards modes are as before and no hook is left."""
    model = tiny_detector(variant, dropout=0.5).train()
    model.model.encoder.eval()
    modes = [module.training for module in model.modules()]
    processor, image = make_processor(variant), some_images()[0]
    [first], [second] = observe(model, processor, image), observe(model, processor, image)
    assert torch.equal(first.boxes_xyxy, second.boxes_xyxy)
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.model.decoder.modules())


@pytest.mark.parametrize(
    ("variant", "dtype"), [("conditional_detr", torch.bfloat16), ("deformable_detr", torch.float16)]
)
def test_half_precision(variant: str, dtype: torch.dtype) -> None:
    """Whatever the model's dtype, an observation is float32 and near that of a float32 model."""
    image, processor = some_images()[0], make_processor(variant)
    [exact] = observe(tiny_detector(variant), processor, image)
    [seen] = observe(tiny_detector(variant).to(dtype), processor, image)
    assert seen.boxes_xyxy.dtype == seen.encoder_attentions[0].dtype == torch.float32
    torch.testing.assert_close(seen.boxes_xyxy, exact.boxes_xyxy, atol=8, rtol=0)


def test_observing_in_several_threads() -> None:
    """Protects a web page's users from each other: every thread keeps its own image's attention."""
    model, processor = tiny_detector("conditional_detr"), make_processor("conditional_detr")
    images = [image[:, :64, :64] for image in some_images()]
    expected = [observe(model, processor, image)[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        indices = [index % len(images) for index in range(24)]
        seen = list(pool.map(lambda index: observe(model, processor, images[index])[0], indices))
    for index, one in zip(indices, seen, strict=True):
        for name in ("content_attentions", "place_attentions"):
            got, wanted = getattr(one, name), getattr(expected[index], name)
            assert len(got) == len(wanted)
            for layer, other in zip(got, wanted, strict=True):
                torch.testing.assert_close(layer, other)


def test_without_attention_there_are_predictions_only(variant: str) -> None:
    """What was left out says so when it's asked for."""
    image = Image.new("RGB", (60, 40))
    model = tiny_detector(variant)
    [seen] = observe(model, make_processor(variant), image, attentions=False)
    assert seen.encoder_attentions is None and len(seen.best_queries(0.0)) == 7
    ask = seen.query_points if variant == "deformable_detr" else seen.query_maps
    with pytest.raises(ValueError, match="attentions=True"):
        ask([0])


def test_segmentation_models_are_observed_too() -> None:
    """A model with masks is its detector; another library's model is refused by name."""
    torch.manual_seed(0)
    model = DetrForSegmentation(tiny_config("detr", d_model=128, encoder_attention_heads=8)).eval()
    [seen] = observe(model, make_processor("detr"), some_images()[0])
    assert seen.query_maps([0]).ndim == 4
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
    with pytest.raises(TypeError, match=r"transformers\..*give a detector of hf_detr"):
        observe(other, make_processor("detr"), some_images()[0])


def test_query_boxes() -> None:
    """Boxes of every query and image, in order, as each image alone predicts them."""
    model, processor = tiny_detector("conditional_detr"), make_processor("conditional_detr")
    boxes = query_boxes(model, processor, iter(some_images()))
    assert boxes.shape == (2, 7, 4)
    with torch.no_grad():
        alone = model(**processor(some_images()[1], return_tensors="pt")).pred_boxes[0]
    torch.testing.assert_close(boxes[1], alone)
    with pytest.raises(ValueError, match="there are no images"):
        query_boxes(model, processor, [])
    two_stage = tiny_detector("deformable_detr", two_stage=True, with_box_refine=True)
    with pytest.raises(ValueError, match="two stages.*learned queries"):
        query_boxes(two_stage, make_processor("deformable_detr"), some_images())
