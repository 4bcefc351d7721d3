"""Image processor of DINO."""

from ...image_processing.sigmoid_image_processor import SigmoidImageProcessor


class DinoDetrImageProcessor(SigmoidImageProcessor):
    """`SigmoidImageProcessor` with the class name in DINO's files, and more detections."""

    default_top_k = 300  # as in the paper's code
