"""Numbers and sizes on command lines."""

import argparse

import pytest

from hf_detr.command_options import add_model_options, positive, size_hw


def test_numbers_and_sizes() -> None:
    """Height comes first, as everywhere; what is no size is refused in words."""
    assert positive("12") == 12 and size_hw("480x640") == (480, 640)
    for text in ("480", "480x", "0x640", "-1x2", "480x640x3"):
        with pytest.raises(argparse.ArgumentTypeError, match="no whole number from 1"):
            size_hw(text)


def test_several_models() -> None:
    """The default is of the kind that the command asked for."""
    for several in (False, True):
        parser = argparse.ArgumentParser()
        add_model_options(parser, several)
        assert isinstance(parser.parse_args([]).model, list if several else str)
