"""Images and COCO annotations to tensors, and outputs of models to results."""
