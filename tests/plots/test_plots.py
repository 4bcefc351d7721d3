"""The public names of the plots."""

from hf_detr import plots


def test_the_table_of_contents_is_complete() -> None:
    """The module's docstring names everything that it gives, and gives everything that it names."""
    for name in set(plots.__all__) - {"SamplingPoints"}:
        assert name in plots.__doc__, name
        assert callable(getattr(plots, name))
