"""Image processor of Conditional DETR."""

from ...image_processing.sigmoid_image_processor import SigmoidImageProcessor


class ConditionalDetrImageProcessor(SigmoidImageProcessor):
    """`SigmoidImageProcessor` with the class name in Conditional DETR's files."""
