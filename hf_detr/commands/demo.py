"""Serve a page for the browser to try detectors: drop an image, see detections and attention.

It starts with the small detector that comes with hf_detr, which knows ten kinds of garments, and
then needs no network. The command needs `pip install 'hf_detr[demo]'`.
"""

import argparse
from importlib.util import find_spec

from .options import model_name, positive

LIBRARIES = ("gradio", "matplotlib")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--model",
        type=model_name,
        help="folder or name on the Hub to start with; default: the garment detector that comes "
        "with hf_detr",
    )
    parser.add_argument("--port", type=positive, help="default: the first free one from 7860")
    parser.add_argument(
        "--share",
        action="store_true",
        help="make a public link through gradio's servers; its users can load any model",
    )


def check(parsed: argparse.Namespace) -> None:
    """Check that the page's libraries are installed.

    Raises:
        ValueError: if one is missing.
    """
    for library in LIBRARIES:
        if find_spec(library) is None:
            raise ValueError(f"{library} isn't installed; pip install 'hf_detr[demo]' installs it.")


def run(parsed: argparse.Namespace) -> int:
    """Serve the page until it is interrupted; return the exit status."""
    from ..plots.demo_page import STYLE, make_page

    page = make_page(parsed.model)
    page.launch(
        server_port=parsed.port,
        share=parsed.share,
        show_error=True,
        footer_links=["gradio"],
        css=STYLE,
    )
    return 0
