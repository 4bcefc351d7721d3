"""The public face of the pictures."""

import hf_detr
from hf_detr import plots


def test_everything_public_is_explained() -> None:
    """The module's docstring, which is its table of contents, names each picture and source."""
    for name in plots.__all__:
        assert callable(getattr(plots, name))
        assert name == "SamplingPoints" or f"`{name}" in plots.__doc__ or name in plots.__doc__
    assert "plots" not in hf_detr.__all__  # importing the package draws nothing
