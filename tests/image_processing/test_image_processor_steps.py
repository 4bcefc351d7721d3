"""Single steps of the image processor: the arguments of transformers 4 and 5."""

import inspect

import numpy as np
import pytest
import torch
from transformers.image_utils import AnnotationFormat, PILImageResampling
from transformers.models.detr.image_processing_detr import DetrImageProcessor as PeerImageProcessor

from hf_detr import DetrImageProcessor

from .test_coco_panoptic import write_png

GENERATOR = torch.Generator().manual_seed(0)
OURS, PEER = DetrImageProcessor(), PeerImageProcessor()


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(3, height, width, generator=GENERATOR)


def record() -> dict:
    polygon = [[1.0, 2.0, 20.0, 3.0, 9.0, 19.0]]
    entries = [
        {"bbox": [1, 2, 20, 18], "category_id": 3, "area": 99.0, "segmentation": polygon},
        {"bbox": [30, 5, 30, 9], "category_id": 1, "area": 270.0, "segmentation": polygon},
    ]
    return {"image_id": 7, "annotations": entries}


@pytest.mark.parametrize(
    "name", ["prepare_annotation", "resize_annotation", "normalize_annotation", "pad"]
)
def test_arguments_are_those_of_transformers(name):
    """Arguments by position and by name mean the same."""
    ours, peer = (
        list(inspect.signature(getattr(kind, name)).parameters)
        for kind in (DetrImageProcessor, PeerImageProcessor)
    )
    assert [argument for argument in ours if argument != "settings"] == peer


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_padding_of_a_list(kind):
    """The collate function of transformers 4's tutorials works: images aren't changed again."""
    images = [image(20, 30), image(25, 10)]
    processor = DetrImageProcessor(do_pad=False)
    encoding = processor.pad([kind(one) for one in images], return_tensors="pt")
    assert set(encoding) == {"pixel_values", "pixel_mask"}
    assert encoding["pixel_values"].shape == (2, 3, 25, 30)
    for one, pixels, mask in zip(
        images, encoding["pixel_values"], encoding["pixel_mask"], strict=True
    ):
        expected, expected_mask, _ = PEER.pad(one, (25, 30))
        assert torch.equal(pixels, expected) and torch.equal(mask, expected_mask)
    wide = processor.pad(images, pad_size={"height": 40, "width": 50}, return_tensors="np")
    assert wide["pixel_values"].shape == (2, 3, 40, 50)


@pytest.mark.parametrize("shape", [(3, 20, 30), (2, 3, 20, 30)])
def test_padding_of_a_tensor_equals_transformers(shape):
    """One image and a batch, and the value of the padding."""
    pixels = torch.randn(shape, generator=GENERATOR)
    for fill in (0, 7):
        ours, peer = (one.pad(pixels, (25, 31), fill=fill) for one in (OURS, PEER))
        assert ours[2] is peer[2] is None
        for one, expected in zip(ours[:2], peer[:2], strict=True):
            assert one.dtype == expected.dtype
            torch.testing.assert_close(one, expected, rtol=0, atol=0)


def test_padding_of_annotations():
    """Masks are padded; boxes and `size` stay relative to the image without its padding."""
    target = {
        "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]]),
        "masks": torch.ones(1, 20, 30, dtype=torch.bool),
        "size": torch.tensor([20, 30]),
    }
    pixels, _, padded = OURS.pad(image(20, 30), (25, 40), target)
    assert pixels.shape == (3, 25, 40) and padded["masks"].shape == (1, 25, 40)
    assert padded["masks"].sum() == 600 and padded["masks"][:, :20, :30].all()
    assert padded["size"].tolist() == [20, 30]
    assert torch.equal(padded["boxes"], target["boxes"])
    batch = torch.zeros(2, 3, 20, 30)
    assert len(OURS.pad(batch, (25, 40), [target, target])[2]) == 2


def test_wrong_padding_raises():
    """The two forms aren't mixed, and images aren't cropped."""
    with pytest.raises(ValueError, match=r"padded_size is \(19, 40\), but the image is \(20, 30\)"):
        OURS.pad(image(20, 30), (19, 40))
    with pytest.raises(TypeError, match="for a tensor only; pass a tensor, or pad_size="):
        OURS.pad([image(20, 30)], (25, 40))
    with pytest.raises(TypeError, match="expected a tensor and padded_size="):
        OURS.pad(image(20, 30), return_tensors="pt")


@pytest.mark.parametrize("masks", [None, True])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
def test_steps_of_an_annotation_equal_transformers(masks):
    """Annotations that are prepared, resized and normalized step by step."""
    pytest.importorskip("pycocotools", reason="transformers reads polygons with pycocotools")
    pixels, results = image(30, 50), []
    for processor in (OURS, PEER):
        steps = [processor.prepare_annotation(pixels, record(), "coco_detection", masks)]
        steps.append(processor.resize_annotation(steps[0], (30, 50), (45, 100)))
        steps.append(processor.normalize_annotation(steps[1], (45, 100)))
        results.append(steps)
    for ours, peer in zip(*results, strict=True):
        assert set(ours) >= set(peer) and ("masks" in ours) == bool(masks)
        assert ours["size"].tolist() in ([30, 50], [45, 100])
        for key in set(peer) - {"size"}:  # a tensor here
            expected = peer[key].bool() if key == "masks" else peer[key]
            torch.testing.assert_close(ours[key], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*decoding and encoding.*:DeprecationWarning")  # torchvision
def test_panoptic_annotation_equals_transformers(tmp_path):
    """The format can be given in either way, or is the processor's."""
    write_png(tmp_path / "a.png", np.repeat([[1, 2]], 30, 0).repeat(25, 1))
    segments = [{"id": n, "category_id": n, "iscrowd": 0, "area": 750} for n in (1, 2)]
    panoptic = {"image_id": 3, "file_name": "a.png", "segments_info": segments}
    expected = PEER.prepare_annotation(
        image(30, 50), panoptic, AnnotationFormat.COCO_PANOPTIC, masks_path=tmp_path
    )
    processor = DetrImageProcessor(format="coco_panoptic")
    for given in (None, "coco_panoptic", AnnotationFormat.COCO_PANOPTIC):
        target = processor.prepare_annotation(image(30, 50), panoptic, given, masks_path=tmp_path)
        assert set(target) == set(expected)
        torch.testing.assert_close(target["boxes"], expected["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(target["masks"], expected["masks"].bool(), rtol=0, atol=0)


def test_layout_of_the_image_of_an_annotation():
    """Boxes are clipped to the image, whose layout is inferred or given."""
    for pixels, layout in ((np.zeros((30, 50, 3)), None), (np.zeros((30, 50, 6)), "channels_last")):
        target = OURS.prepare_annotation(pixels, record(), input_data_format=layout)
        assert target["orig_size"].tolist() == list(pixels.shape[:2])


def test_wrong_steps_raise():
    """Arguments that would have no effect raise."""
    target = OURS.prepare_annotation(image(30, 50), record(), return_segmentation_masks=True)
    with pytest.raises(ValueError, match="resample is .*; masks are resized to the nearest pixel"):
        OURS.resize_annotation(target, (30, 50), (3, 5), resample=PILImageResampling.BILINEAR)
    with pytest.raises(ValueError, match="format is 'yolo'"):
        OURS.prepare_annotation(image(30, 50), record(), "yolo")
    with pytest.raises(ValueError, match="format is 'coco_panoptic' and masks_path is None"):
        OURS.prepare_annotation(image(30, 50), record(), "coco_panoptic")
