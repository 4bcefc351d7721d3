"""What can't be evaluated is refused before the model runs."""

from types import SimpleNamespace

import pytest
import transformers
from torch import nn

from hf_detr import evaluate, evaluate_panoptic
from hf_detr.evaluation.model_checks import check_model

from ..models.test_segmentation import tiny_segmenter
from ..tiny import PREFIXES, class_of, tiny_detector


@pytest.mark.parametrize("variant", PREFIXES)
def test_processor_of_another_model(variant: str) -> None:
    """A softmax read as sigmoids, or the other way round, gives a wrong AP without any error."""
    model = tiny_detector(variant)
    own = class_of(variant, "ImageProcessor")()
    check_model(model, own, needs_masks=False)
    for other in PREFIXES:
        processor = class_of(other, "ImageProcessor")()
        if processor.classification is own.classification:
            check_model(model, processor, needs_masks=False)
            continue
        with pytest.raises(
            ValueError, match=f"ImageProcessor doesn't read .*{type(model).__name__}"
        ):
            check_model(model, processor, needs_masks=False)


def test_processor_of_transformers() -> None:
    """Its post-processing can't give all detections; the message says how to load ours."""
    processor = transformers.DetrImageProcessor()
    for measure in (evaluate, evaluate_panoptic):
        with pytest.raises(TypeError, match=r"of transformers.*AutoImageProcessor.from_pretrained"):
            measure(tiny_detector(), processor, SimpleNamespace())


def test_masks_of_a_detector() -> None:
    """They are missed before images are read; models of other packages can have them."""
    processor = class_of("detr", "ImageProcessor")()
    check_model(tiny_segmenter("detr"), processor, needs_masks=True)
    check_model(nn.Linear(1, 1), processor, needs_masks=True)
    for measure, more in ((evaluate, {"iou_types": ["segm"]}), (evaluate_panoptic, {})):
        with pytest.raises(ValueError, match="ForObjectDetection has no mask head"):
            measure(tiny_detector(), processor, SimpleNamespace(), **more)
