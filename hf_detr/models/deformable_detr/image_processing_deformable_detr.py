"""Image processor of Deformable DETR."""

from ...image_processing.sigmoid_image_processor import SigmoidImageProcessor


class DeformableDetrImageProcessor(SigmoidImageProcessor):
    """`SigmoidImageProcessor` with the class name in Deformable DETR's files."""
