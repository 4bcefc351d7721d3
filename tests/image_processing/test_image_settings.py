"""Settings of the image processor: forms of size, and errors for invalid settings."""

import json
from pathlib import Path

import pytest
from transformers.image_utils import SizeDict

from hf_detr import DetrImageProcessor
from hf_detr.image_processing.image_settings import padded_hw, resized_hw, standard_size

FIXTURE = Path(__file__).parents[1] / "fixtures" / "image_processor_transformers.json"
TABLES = json.loads(FIXTURE.read_text())["sizes"]["tables"]


@pytest.mark.parametrize("name", list(TABLES))
def test_sizes_equal_transformers_tables(name):
    """The size rule is that of transformers, also for sizes where the official one differs."""
    shortest, longest = (int(number) for number in name.split("/"))
    size = SizeDict(shortest_edge=shortest, longest_edge=longest)
    assert len(TABLES[name]) >= 40
    for width, height, new_width, new_height in TABLES[name]:
        assert resized_hw((height, width), size) == (new_height, new_width), (width, height)


@pytest.mark.parametrize(
    ("size", "image_hw", "expected_hw"),
    [
        ({"shortest_edge": 100}, (50, 400), (100, 800)),
        ({"height": 30, "width": 70}, (50, 400), (30, 70)),
        ({"max_height": 100, "max_width": 100}, (50, 400), (12, 100)),
        ({"max_height": 100, "max_width": 100}, (400, 50), (100, 12)),
        ({"shortest_edge": 800, "longest_edge": 1333}, (1, 5000), (1, 1333)),
        ({"max_height": 10, "max_width": 10}, (5000, 1), (10, 1)),
    ],
)
def test_every_kind_of_size(size, image_hw, expected_hw):
    """Resized images have at least one pixel."""
    assert resized_hw(image_hw, SizeDict(**size)) == expected_hw


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None,), {"shortest_edge": 800, "longest_edge": 1333}),
        ((600,), {"shortest_edge": 600, "longest_edge": 1333}),
        ((600, 1000), {"shortest_edge": 600, "longest_edge": 1000}),
        ((600, None), {"shortest_edge": 600}),
        (([480, 640],), {"height": 480, "width": 640}),
        (({"shortest_edge": 480},), {"shortest_edge": 480}),
        (({"height": 48, "width": 64, "longest_edge": None},), {"height": 48, "width": 64}),
        ((SizeDict(max_height=5, max_width=6),), {"max_height": 5, "max_width": 6}),
    ],
)
def test_forms_of_size_in_files(arguments, expected):
    """Old processor files have an int and `max_size`."""
    assert standard_size(*arguments) == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"size": {"longest_edge": 5}}, "size is"),
        ({"size": {"height": 5}}, "size is"),
        ({"size": "800"}, "size is '800'"),
        ({"size": {"height": 0, "width": 5}}, r"size\['height'\] is 0"),
        ({"size": {"height": 5.5, "width": 5}}, r"size\['height'\] is 5.5"),
        ({"size": -800}, r"size\['shortest_edge'\] is -800"),
        ({"pad_size": {"height": 0, "width": 5}}, r"pad_size\['height'\] is 0"),
        ({"pad_size": {"shortest_edge": 5}}, "pad_size is"),
        ({"image_mean": [0.5]}, "image_mean is"),
        ({"image_mean": 0.5}, "image_mean is 0.5"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean is"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std is"),
        ({"image_std": [0.5, 0.5, -1.0]}, "image_std is"),
        ({"rescale_factor": 0.0}, "rescale_factor is 0.0"),
        ({"rescale_factor": float("inf")}, "rescale_factor is inf"),
        ({"format": "yolo"}, "format is 'yolo'"),
        ({"resample": 17}, "resample is 17"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"data_format": "channels_last"}, "data_format"),
    ],
)
def test_invalid_settings_raise_at_construction(setting, message):
    """Invalid settings don't fail later or change pixels silently."""
    with pytest.raises(ValueError, match=message):
        DetrImageProcessor(**setting)


def test_canvas_is_the_largest_of_the_batch_or_pad_size():
    """Images are padded to the largest height and the largest width."""
    sizes_hw = [(3, 9), (7, 2)]
    assert padded_hw(sizes_hw, do_pad=True, pad_size=None) == (7, 9)
    assert padded_hw(sizes_hw, do_pad=True, pad_size=SizeDict(height=8, width=9)) == (8, 9)
    assert padded_hw([(3, 9)] * 2, do_pad=False, pad_size=None) == (3, 9)


def test_images_that_do_not_fit_raise():
    """Images aren't cropped silently."""
    with pytest.raises(ValueError, match="image 1 is 7 x 2 .* fit into pad_size 6 x 9"):
        padded_hw([(3, 9), (7, 2)], do_pad=True, pad_size=SizeDict(height=6, width=9))
    with pytest.raises(ValueError, match="do_pad is False; set do_pad=True"):
        padded_hw([(3, 9), (7, 2)], do_pad=False, pad_size=None)
