"""What all plots share: extents, letters, and what happens without matplotlib."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from hf_detr import draw_predictions
from hf_detr.plots.figures import COLORS, make_panels, mark_point, show_map, write_labels

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


def test_labels_stay_within_the_image_and_visible() -> None:
    """Labels of boxes that stick out, or are equal, are inside and don't hide each other."""
    figure, axes = make_panels(1, 1, (100, 100))
    show_map(axes[0, 0], torch.ones(1, 1), torch.zeros(3, 100, 100))
    boxes = [(-5, -5, 30, 30), (80, 60, 120, 90), (80, 60, 120, 90), (78, 62, 118, 92)]
    texts = ["coat 0.90", "jolly trousers 0.80", "bag 0.70", "sneaker 0.60"]
    write_labels(axes[0, 0], boxes, texts, COLORS[:4], (100, 100))
    figure.savefig("/dev/null", format="png")
    extents = []
    assert [text.get_text() for text in axes[0, 0].texts] == texts
    for text in axes[0, 0].texts:
        extent = text.get_window_extent().transformed(axes[0, 0].transData.inverted())
        low, high = sorted((extent.y0, extent.y1))
        assert extent.x0 >= -1 and extent.x1 <= 101 and low >= -1 and high <= 101
        for x0, x1, other_low, other_high in extents:
            assert extent.x1 <= x0 or extent.x0 >= x1 or high <= other_low or low >= other_high
        extents.append((extent.x0, extent.x1, low, high))


def test_letters_have_an_outline() -> None:
    """White letters with a black outline on the object's colour, in plots as in pictures."""
    _, axes = make_panels(1, 1, (100, 100))
    show_map(axes[0, 0], torch.ones(1, 1), torch.zeros(3, 100, 100))
    write_labels(axes[0, 0], [(10, 40, 60, 80)], ["coat"], ["#E69F00"], (100, 100))
    mark_point(axes[0, 0], (50, 50), "#E69F00", "1")
    assert len(axes[0, 0].texts) == 2
    for text in axes[0, 0].texts:
        assert (
            text.get_color() == "white" and text.get_path_effects()[0]._gc["foreground"] == "black"
        )
        assert to_hex(text.get_bbox_patch().get_facecolor()) == "#e69f00"
    for label in range(12):
        result = {"labels": torch.tensor([label]), "boxes": torch.tensor([[100.0, 100, 300, 300]])}
        picture = draw_predictions(np.full((400, 400, 3), 100, np.uint8), result, {label: "coat"})
        colors = {color for _, color in picture.getcolors(2**16)}
        assert {(255, 255, 255), (0, 0, 0)} <= colors


def test_nothing_to_draw_is_refused() -> None:
    """A figure without panels is an error."""
    with pytest.raises(ValueError, match="nothing to draw"):
        make_panels(1, 0, (3, 3))
