"""Check that model, processor and what is measured fit, before the model runs."""

from torch import nn

from ..image_processing.image_processor import DetectionImageProcessor
from ..models.pretrained_model import DetectionPreTrainedModel
from ..models.segmentation import Segmenter


def check_model(model: nn.Module, processor: DetectionImageProcessor, needs_masks: bool) -> None:
    """Check a model and its processor; models of other packages are taken as they are.

    Raises:
        TypeError: if the processor is none of hf_detr.
        ValueError: if it reads scores of another kind, or the model has no masks.
    """
    kind, its = type(model).__name__, type(processor).__name__
    load = "AutoImageProcessor.from_pretrained, after `import hf_detr`, loads the model's"
    if not isinstance(processor, DetectionImageProcessor):
        raise TypeError(f"The processor is a {its} of {type(processor).__module__}; {load}.")
    if not isinstance(model, DetectionPreTrainedModel):
        return
    criterion = getattr(model, "criterion", None)
    if criterion is not None and not isinstance(criterion.classification, processor.classification):
        raise ValueError(f"A {its} doesn't read the scores of a {kind}; {load}.")
    if needs_masks and not isinstance(model, Segmenter):
        raise ValueError(f"{kind} has no mask head; expected a segmentation model.")
