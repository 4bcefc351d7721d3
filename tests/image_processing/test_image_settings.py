"""Settings of the image processor: forms of size, and errors for invalid settings."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.image_utils import SizeDict
from transformers.models.detr.image_processing_detr import DetrImageProcessor as PeerImageProcessor

from hf_detr import DetrImageProcessor
from hf_detr.image_processing.image_settings import (
    SWITCHES,
    number_of_channels,
    padded_hw,
    resized_hw,
    standard_size,
)

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
        (({"shortest_edge": 480.0},), {"shortest_edge": 480}),
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
        ({"size": {"height": 5}}, "size is"),
        ({"size": "800"}, "size is '800'"),
        ({"size": {"height": 0, "width": 5}}, r"size\['height'\] is 0"),
        ({"size": {"height": 5.5, "width": 5}}, r"size\['height'\] is 5.5"),
        ({"size": -800}, r"size\['shortest_edge'\] is -800"),
        ({"pad_size": {"height": 0, "width": 5}}, r"pad_size\['height'\] is 0"),
        ({"pad_size": {"shortest_edge": 5}}, "pad_size is"),
        ({"image_mean": []}, "image_mean is"),
        ({"image_mean": "0.5"}, "image_mean is '0.5'"),
        ({"image_mean": [0.5] * 4}, "image_std is .*; expected the same number of values"),
        ({"image_std": 0.0}, "image_std is 0.0"),
        (
            {"image_mean": [0.5] * 4, "image_std": [0.5] * 4, "do_convert_rgb": True},
            "do_convert_rgb is True; expected the same number of values, three for RGB",
        ),
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


def test_sizes_without_a_rule_raise_when_an_image_is_resized(tmp_path):
    """Files load as in transformers; only resizing is refused."""
    image, size = np.zeros((30, 40, 3), np.uint8), {"min_pixels": 100, "max_pixels": 900}
    PeerImageProcessor(size=size).save_pretrained(tmp_path)
    processor = DetrImageProcessor.from_pretrained(tmp_path)
    assert dict(processor.size) == size
    with pytest.raises(ValueError, match=r"can't be resized to the size .*; expected one of"):
        processor(image)
    assert processor(image, do_resize=False)["pixel_values"].shape == (1, 3, 30, 40)


@pytest.mark.parametrize("image_hw", [(30, 40), (400, 300), (120, 120)])
def test_longest_edge_alone(image_hw, tmp_path):
    """Table Transformer's files: images get that longest edge; transformers resizes none."""
    image = np.zeros((*image_hw, 3), np.uint8)
    PeerImageProcessor(size={"longest_edge": 80}).save_pretrained(tmp_path)
    processor = DetrImageProcessor.from_pretrained(tmp_path)
    expected = tuple(side * 80 // max(image_hw) for side in image_hw)
    assert processor(image)["pixel_values"].shape[-2:] == expected
    given = DetrImageProcessor()(image, size={"longest_edge": 80})
    assert given["pixel_values"].shape[-2:] == expected
    processor.save_pretrained(tmp_path)
    theirs = PeerImageProcessor.from_pretrained(tmp_path)  # which can use it now
    assert theirs(image)["pixel_values"].shape[-2:] == expected


def test_a_missing_shortest_edge_can_be_added():
    """The usual remedy for Table Transformer's files works as in transformers."""
    image = np.zeros((30, 40, 3), np.uint8)
    shapes = []
    for kind in (DetrImageProcessor, PeerImageProcessor):
        processor = kind(size={"longest_edge": 100})
        processor.size["shortest_edge"] = 60
        shapes.append(processor(image, return_tensors="pt")["pixel_values"].shape)
    assert shapes[0] == shapes[1] == (1, 3, 60, 80)


FILES_OF_OTHER_MODELS = [
    {"size": 800, "max_size": 1000, "feature_extractor_type": "DetrFeatureExtractor"},
    {"size": {"longest_edge": 1000, "shortest_edge": 800}},
    {
        "size": {"height": 640, "width": 640},
        "do_rescale": False,
        "do_pad": False,
        "image_mean": [123.675, 116.28, 103.53],
        "image_std": [58.395, 57.12, 57.375],
    },
    {"size": {"height": 640, "width": 640}, "do_pad": True, "pad_size": None},
]


@pytest.mark.parametrize("content", FILES_OF_OTHER_MODELS, ids=str)
def test_files_of_models_with_the_same_processor(content, tmp_path):
    """Table Transformer, OmDet-Turbo and LW-DETR get the same pixels as from transformers."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**content, "image_processor_type": "DetrImageProcessor"}))
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    ours, peer = (
        kind.from_pretrained(tmp_path)(image, return_tensors="pt")
        for kind in (DetrImageProcessor, PeerImageProcessor)
    )
    assert set(ours) == set(peer)
    torch.testing.assert_close(ours["pixel_values"], peer["pixel_values"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["false", "true", 0, 1.0, []])
def test_switches_are_true_or_false(name, value):
    """The text "false" doesn't mean True."""
    with pytest.raises(ValueError, match=f"{name} is .*; expected True or False"):
        DetrImageProcessor(**{name: value})


def test_switches_that_are_set_later_are_checked():
    """Attributes are checked when they are used."""
    processor = DetrImageProcessor()
    processor.do_rescale = "false"
    with pytest.raises(ValueError, match="do_rescale is 'false'"):
        processor(np.zeros((30, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("do_normalise", "do_normalize"),
        ("image_means", "image_mean"),
        ("rescale_facto", "rescale_factor"),
        ("max_siz", "max_size"),
    ],
)
def test_misspelt_fields_warn(wrong, right):
    """A field with a spelling mistake isn't kept silently."""
    with pytest.warns(UserWarning, match=f"no field '{wrong}', .* did you mean '{right}'"):
        DetrImageProcessor(**{wrong: None})


def test_old_and_misspelt_names_in_from_pretrained(tmp_path):
    """`max_size` of transformers 4 has an effect, as there, and misspelt names warn."""
    DetrImageProcessor().save_pretrained(tmp_path)
    settings = {"size": 600, "max_size": 1000, "pad_and_return_pixel_mask": False}
    processor = DetrImageProcessor.from_pretrained(tmp_path, **settings)
    assert dict(processor.size) == {"shortest_edge": 600, "longest_edge": 1000}
    assert processor.do_pad is False
    with pytest.warns(UserWarning, match="no field 'do_normalise'"):
        DetrImageProcessor.from_pretrained(tmp_path, do_normalise=False)


def test_a_max_size_without_effect_warns():
    """`max_size` is only used beside an int; a dict has its own longest edge."""
    size = {"shortest_edge": 600, "longest_edge": 1000}
    with pytest.warns(UserWarning, match="max_size=800 has no effect, because size is"):
        assert dict(DetrImageProcessor(size=size, max_size=800).size) == size
    assert dict(DetrImageProcessor(size=size, max_size=1000).size) == size  # without a warning
    assert dict(DetrImageProcessor(size=600, max_size=None).size) == {"shortest_edge": 600}


def test_another_size_than_in_an_old_file(tmp_path):
    """The `max_size` of a file doesn't warn beside a new size, and limits a new number only."""
    content = '{"size": 800, "max_size": 1333}'
    (tmp_path / "preprocessor_config.json").write_text(content, encoding="utf-8")
    for size in ({"shortest_edge": 600, "longest_edge": 1000}, {"height": 640, "width": 640}):
        assert dict(DetrImageProcessor.from_pretrained(tmp_path, size=size).size) == size
    processor = DetrImageProcessor.from_pretrained(tmp_path, size=600)
    assert dict(processor.size) == {"shortest_edge": 600, "longest_edge": 1333}


def test_unused_numbers_may_be_missing(tmp_path):
    """Files without rescaling and normalization load without their numbers, as in transformers."""
    steps = '"do_rescale": false, "do_normalize": false, "do_resize": false'
    numbers = '"image_mean": null, "image_std": null, "rescale_factor": null'
    (tmp_path / "preprocessor_config.json").write_text(f"{{{steps}, {numbers}}}", encoding="utf-8")
    processor = DetrImageProcessor.from_pretrained(tmp_path)
    image = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    pixels = processor(image, return_tensors="np", input_data_format="channels_last")
    np.testing.assert_array_equal(pixels["pixel_values"][0], image.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="image_mean is None"):
        processor(image, do_normalize=True)


OTHER_FIELDS = (
    *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "use_fast"),
    *("_valid_processor_keys", "crop_pct", "size_divisor", "do_reduce_labels", "reduce_labels"),
    *("data_format", "input_data_format", "return_tensors", "device", "default_to_square"),
    *("num_labels", "patch_size", "return_segmentation_masks", "masks_path", "interpolation"),
    *("max_size", "pad_and_return_pixel_mask", "crop_size", "do_flip_channel_order"),
)


def test_fields_of_files_on_the_hub_do_not_warn():
    """Fields of other versions and processors are kept as in transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor = DetrImageProcessor(**dict.fromkeys(OTHER_FIELDS), crop_pct_of_timm=0.9)
    assert processor.crop_pct_of_timm == 0.9


@pytest.mark.parametrize(
    ("mean", "std", "do_convert_rgb", "expected"),
    [
        ([0.5] * 3, [0.5] * 3, None, 3),
        ([0.5] * 3, 0.5, None, 3),
        (0.5, [0.5] * 6, None, 6),
        (0.5, 0.5, None, None),
        ([0.5], [0.5], False, None),
        (0.5, 0.5, True, 3),
    ],
)
def test_number_of_channels(mean, std, do_convert_rgb, expected):
    """Mean and deviation say how many channels images have."""
    assert number_of_channels(mean, std, do_convert_rgb) == expected
