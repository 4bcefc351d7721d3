"""What all plots share: extents, ink, and what happens without matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_detr.plots.figures import COLORS, ink_on, make_panels, show_map, write_label

REPOSITORY = Path(__file__).parents[2]


def test_matplotlib_is_asked_for_by_plots_only() -> None:
    """hf_detr imports without it; plots say what to install, and never load pyplot."""
    code = (
        "import sys, hf_detr; assert 'matplotlib' not in sys.modules\n"
        "sys.modules['matplotlib'] = None\n"
        "try:\n    from hf_detr import plots\n"
        "except ImportError as error:\n    print(error)\n"
        "del sys.modules['matplotlib']\n"
        "from hf_detr import plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "pip install 'hf_detr[plots]'" in result.stdout


def test_maps_cover_the_image() -> None:
    """Image and map share the pixels' coordinates; the largest weight is the most opaque."""
    figure, axes = make_panels(1, 1, (40, 20))
    weights = torch.tensor([[0.0, 1.0], [0.25, 0.5]])
    show_map(axes[0, 0], weights, torch.zeros(3, 20, 40, dtype=torch.uint8))
    image, heat = axes[0, 0].get_images()
    assert image.get_extent() == heat.get_extent() == [0, 40, 20, 0]
    opacity = torch.from_numpy(heat.get_array()[..., 3])
    assert opacity.flatten().argsort().tolist() == weights.flatten().argsort().tolist()
    assert opacity[0, 0] == 0


def test_labels_stay_within_the_image() -> None:
    """A label of a box that sticks out begins, or ends, inside."""
    figure, axes = make_panels(1, 1, (100, 100))
    show_map(axes[0, 0], torch.ones(1, 1), torch.zeros(3, 100, 100))
    for box in ((-5, -5, 30, 30), (80, 60, 120, 90)):
        write_label(axes[0, 0], box, "coat 0.90", COLORS[0])
    figure.savefig("/dev/null", format="png")
    for text in axes[0, 0].texts:
        extent = text.get_window_extent().transformed(axes[0, 0].transData.inverted())
        assert extent.x0 >= -1 and extent.x1 <= 101
        assert min(extent.y0, extent.y1) >= -1


def test_ink_contrasts() -> None:
    """Text is readable on every colour: contrast of at least 4.5 to 1 (WCAG 2)."""

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for color in COLORS:
        ink = {"black": 0.0, "white": 1.0}[ink_on(color)]
        low, high = sorted((ink, luminance(color)))
        assert (high + 0.05) / (low + 0.05) > 4.5, color


def test_nothing_to_draw_is_refused() -> None:
    """A figure without panels is an error."""
    with pytest.raises(ValueError, match="nothing to draw"):
        make_panels(1, 0, (3, 3))
