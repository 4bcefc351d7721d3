"""The image processor: pixels and files as in transformers, targets of unpadded images, errors."""

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.models.detr.image_processing_detr import DetrImageProcessor as PeerImageProcessor

from hf_detr import ConditionalDetrImageProcessor, DetrImageProcessor

from .test_coco_panoptic import write_png

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
GENERATOR = np.random.default_rng(0)
SIZE = {"shortest_edge": 64, "longest_edge": 100}


def random_images(*sizes_hw: tuple[int, int]) -> list[PIL.Image.Image]:
    return [
        PIL.Image.fromarray(GENERATOR.integers(0, 256, (*hw, 3), dtype=np.uint8)) for hw in sizes_hw
    ]


def record(image_id: int = 1, bbox: tuple[float, ...] = (10, 5, 20, 8)) -> dict:
    return {"image_id": image_id, "annotations": [{"bbox": list(bbox), "category_id": 3}]}


# --- equality with transformers -------------------------------------------------------------------


def load_reference(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    path = folder / "image_processor_transformers.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there; the copied fixture tests the same on fewer settings")
    return json.loads(path.with_suffix(".json").read_text()), load_file(path)


@pytest.mark.parametrize("folder", [FIXTURES, REFERENCE / "ops"], ids=["fixture", "reference"])
def test_recorded_outputs_of_transformers(folder):
    """Pixels, masks and targets equal the recorded ones; boxes differ by the padding."""
    case, tensors = load_reference(folder)
    images = [tensors["image/0"].numpy(), tensors["image/1"].numpy()]
    for name, settings in case["settings"].items():
        processor = DetrImageProcessor(**settings)
        with pytest.warns(UserWarning, match="dropped"):
            inputs = processor(images, annotations=case["annotations"], return_tensors="pt")
        prefix = f"torchvision/{name}"
        torch.testing.assert_close(
            inputs["pixel_values"], tensors[f"{prefix}/pixel_values"], rtol=0, atol=1e-6
        )
        expected_mask = recorded_bits(case, tensors, f"{prefix}/pixel_mask").long()
        torch.testing.assert_close(inputs["pixel_mask"], expected_mask, rtol=0, atol=0)
        for index, label in enumerate(inputs["labels"]):
            check_label(label, recorded_label(case, tensors, f"{prefix}/labels/{index}"), settings)


@pytest.mark.parametrize("folder", [FIXTURES, REFERENCE / "ops"], ids=["fixture", "reference"])
def test_recorded_panoptic_targets_of_transformers(folder, tmp_path):
    """Panoptic targets equal the recorded ones; boxes differ by the padding."""
    case, tensors = load_reference(folder)
    images = [tensors["image/0"].numpy(), tensors["image/1"].numpy()]
    for index, annotation in enumerate(case["panoptic_annotations"]):
        write_png(tmp_path / annotation["file_name"], tensors[f"panoptic_map/{index}"].numpy())
    inputs = DetrImageProcessor(size=SIZE, format="coco_panoptic")(
        images, case["panoptic_annotations"], masks_path=tmp_path, return_tensors="pt"
    )
    prefix = "torchvision/panoptic_edge_64_100"
    for index, label in enumerate(inputs["labels"]):
        expected = recorded_label(case, tensors, f"{prefix}/labels/{index}")
        assert "masks" in expected
        check_label(label, expected, {})


def recorded_bits(case: dict, tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    shape = case["packed_bits"][name]
    bits = np.unpackbits(tensors[name].numpy(), count=math.prod(shape))
    return torch.from_numpy(bits.reshape(shape).astype(bool))


def recorded_label(
    case: dict, tensors: dict[str, torch.Tensor], prefix: str
) -> dict[str, torch.Tensor]:
    names = {name.split("/")[-1]: name for name in tensors if name.startswith(f"{prefix}/")}
    label = {key: tensors[name] for key, name in names.items()}
    if "masks" in label:
        label["masks"] = recorded_bits(case, tensors, names["masks"])
    return label


def check_label(label: dict, expected: dict, settings: dict) -> None:
    """Compare with a label of transformers, whose `size` and boxes refer to the canvas."""
    assert set(label) == set(expected)
    if "masks" in expected:  # in transformers bytes, unless resized
        expected = {**expected, "masks": expected["masks"].bool()}
    for key in set(expected) - {"area", "boxes", "size"}:
        torch.testing.assert_close(label[key], expected[key], rtol=0, atol=0)
    torch.testing.assert_close(label["area"], expected["area"], rtol=1e-6, atol=0)
    boxes, canvas = expected["boxes"], torch.as_tensor(expected["size"])
    if settings.get("do_convert_annotations", True):  # from relative to the canvas to the image
        boxes = boxes * (canvas.flip(0) / label["size"].flip(0)).repeat(2)
    torch.testing.assert_close(label["boxes"], boxes, rtol=0, atol=1e-5)


def test_boxes_equal_the_official_ones():
    """Boxes and pixels of an image equal those of the official code."""
    path = REFERENCE / "ops" / "image_transform.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    tensors = load_file(path)
    corners = tensors["target/boxes"]
    boxes_xywh = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], -1)
    entries = [
        {"bbox": box, "category_id": label, "area": area}
        for box, label, area in zip(
            boxes_xywh, tensors["target/labels"], tensors["target/area"], strict=True
        )
    ]
    image = PIL.Image.fromarray(tensors["image_uint8_hwc"].numpy())
    larger = PIL.Image.new("RGB", (50, 80))  # padding must not change the first image's boxes
    for name, size in (("64_100", SIZE), ("24_1333", {"shortest_edge": 24, "longest_edge": 1333})):
        inputs = DetrImageProcessor(size=size)(
            [image, larger],
            [{"image_id": 1, "annotations": entries}, {"image_id": 2, "annotations": []}],
            return_tensors="pt",
        )
        label, expected = inputs["labels"][0], f"official/{name}"
        assert inputs["pixel_mask"].float().mean() < 1
        for key in ("boxes", "area"):
            torch.testing.assert_close(label[key], tensors[f"{expected}/{key}"], rtol=1e-5, atol=0)
        assert torch.equal(label["size"], tensors[f"{expected}/size"])
        height, width = label["size"].tolist()
        # PIL sometimes rounds to the next byte: 1/255/0.224 = 0.0175.
        torch.testing.assert_close(
            inputs["pixel_values"][0, :, :height, :width],
            tensors[f"{expected}/pixel_values"],
            rtol=0,
            atol=0.018,
        )


SETTINGS = [
    {},
    {"size": {"height": 48, "width": 56}},
    {"size": {"max_height": 48, "max_width": 56}},
    {"size": 64, "max_size": 90},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_normalize": False, "do_rescale": False},
    {"do_resize": False},
    {"resample": 0},
    {"resample": 3},
    {"pad_size": {"height": 120, "width": 130}},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("return_tensors", ["pt", "np"])
def test_same_pixels_as_the_installed_transformers(settings, return_tensors):
    """Values, types and shapes are equal for all settings."""
    settings = {"size": SIZE, **settings}
    images = random_images((37, 50), (45, 40), (37, 50), (3, 70))
    ours = DetrImageProcessor(**settings)(images, return_tensors=return_tensors)
    peer = PeerImageProcessor(**settings)(images, return_tensors=return_tensors)
    assert set(ours) == set(peer) == {"pixel_values", "pixel_mask"}
    # Without rescaling, values reach 1000, where the precision of float32 is 2e-7 times the value.
    rtol = 0 if settings.get("do_rescale", True) else 2e-7
    for key in peer:
        assert type(ours[key]) is type(peer[key]) and ours[key].dtype == peer[key].dtype
        torch.testing.assert_close(
            torch.as_tensor(ours[key]), torch.as_tensor(peer[key]), rtol=rtol, atol=1e-6
        )


def test_full_size_image_has_transformers_pixels():
    """Pixels are equal at the default size, 640 x 480 to 1066 x 800."""
    images = random_images((480, 640))
    ours = DetrImageProcessor()(images, return_tensors="pt")
    peer = PeerImageProcessor()(images, return_tensors="pt")
    assert ours["pixel_values"].shape == (1, 3, 800, 1066)
    assert ours["pixel_values"].is_contiguous()
    torch.testing.assert_close(ours["pixel_values"], peer["pixel_values"], rtol=0, atol=1e-6)


def test_unit_floats_equal_transformers_without_rescaling():
    """Float images in 0 … 1 aren't rescaled twice, also in a batch with uint8 images."""
    pixels = torch.rand(3, 30, 40)
    image = random_images((30, 40))[0]
    ours = DetrImageProcessor(size=SIZE)([pixels, image], return_tensors="pt")["pixel_values"]
    peer = PeerImageProcessor(size=SIZE)
    expected = torch.cat(
        [
            peer(pixels, do_rescale=False, return_tensors="pt")["pixel_values"],
            peer(image, return_tensors="pt")["pixel_values"],
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    in_bytes = DetrImageProcessor(size=SIZE)(pixels * 255, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(in_bytes, expected[:1], rtol=0, atol=1e-5)


# --- files ----------------------------------------------------------------------------------------

OLD_HUB_FILE = {
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "DetrFeatureExtractor",
    "format": "coco_detection",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_size": 1333,
    "size": 800,
}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (OLD_HUB_FILE, {}),
        ({**OLD_HUB_FILE, "size": 600, "max_size": 700}, {"size": (600, 700)}),
        ({**OLD_HUB_FILE, "format": "coco_panoptic"}, {"format": "coco_panoptic"}),
        ({"pad_and_return_pixel_mask": False}, {"do_pad": False}),
        ({"do_normalize": False}, {"do_normalize": False, "do_convert_annotations": False}),
        ({"crop_size": None, "data_format": "channels_first", "do_center_crop": None}, {}),
    ],
)
def test_reads_files_of_all_versions_as_transformers(tmp_path, content, expected):
    """All processor files on the Hub can be read."""
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**content, "image_processor_type": "DetrFeatureExtractor"}))
    ours = DetrImageProcessor.from_pretrained(tmp_path)
    peer = PeerImageProcessor.from_pretrained(tmp_path)
    for key in [
        "do_resize",
        "do_rescale",
        "do_normalize",
        "do_pad",
        "do_convert_annotations",
        "format",
    ]:
        assert getattr(ours, key) == getattr(peer, key) == expected.get(key, getattr(peer, key))
    shortest, longest = expected.get("size", (800, 1333))
    assert dict(ours.size) == dict(peer.size)
    assert dict(ours.size) == {"shortest_edge": shortest, "longest_edge": longest}
    assert tuple(ours.image_mean) == tuple(peer.image_mean) and ours.resample == peer.resample


@pytest.mark.parametrize("version", ["v4.57", "v5.23"])
def test_reads_recorded_files(version):
    """Files of two versions of transformers are read completely."""
    path = REFERENCE / f"transformers/detr-object-detection/preprocessor_config_{version}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    written = json.loads(path.read_text())
    rewritten = DetrImageProcessor.from_pretrained(path).to_dict()
    rewritten = json.loads(json.dumps(rewritten))
    assert rewritten == {key: value for key, value in written.items() if value is not None}


def test_written_files_equal_those_of_transformers(tmp_path):
    """Published processors don't require hf_detr."""
    settings = {"size": 64, "max_size": 90, "do_pad": False, "pad_size": {"height": 9, "width": 9}}
    ours = DetrImageProcessor(**settings)
    assert json.loads(ours.to_json_string()) == json.loads(
        PeerImageProcessor(**settings).to_json_string()
    )
    ours.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["image_processor_type"] == "DetrImageProcessor"
    for cls in (PeerImageProcessor, DetrImageProcessor):
        again = cls.from_pretrained(tmp_path)
        assert json.loads(again.to_json_string()) == content


def test_settings_can_be_given_for_one_call():
    """Settings of a call don't change the processor."""
    processor = DetrImageProcessor(size=SIZE)
    image = random_images((30, 40))[0]
    before = processor.to_json_string()
    inputs = processor(image, size={"height": 20, "width": 24}, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 20, 24)
    assert processor.to_json_string() == before
    with pytest.raises(ValueError, match="image_std is"):
        processor(image, image_std=[1.0, 1.0, 0.0])


def test_none_in_a_call_uses_the_setting_of_the_processor():
    """None doesn't mean False."""
    processor = DetrImageProcessor(size=SIZE, pad_size={"height": 200, "width": 200})
    image = random_images((30, 40))[0]
    none = dict.fromkeys(
        ("do_resize", "size", "do_rescale", "do_normalize", "image_mean", "do_pad")
    )
    torch.testing.assert_close(
        dict(processor(image, **none, return_tensors="pt")),
        dict(processor(image, return_tensors="pt")),
        rtol=0,
        atol=0,
    )
    tight = processor(image, pad_size=None, return_tensors="pt")["pixel_values"]
    assert tight.shape == (1, 3, 64, 85)


# --- batches --------------------------------------------------------------------------------------


def test_padding_is_zero_and_masked():
    """The padding at the bottom and the right is 0, although the canvas isn't initialized."""
    images = random_images((30, 40), (40, 30), (20, 20))
    inputs = DetrImageProcessor(do_resize=False)(images, return_tensors="pt")
    assert inputs["pixel_mask"].dtype == torch.int64
    for index, (height, width) in enumerate([(30, 40), (40, 30), (20, 20)]):
        expected = torch.zeros(40, 40, dtype=torch.int64)
        expected[:height, :width] = 1
        assert torch.equal(inputs["pixel_mask"][index], expected)
        assert (inputs["pixel_values"][index] * (1 - expected) == 0).all()
        pixels = torch.from_numpy(np.array(images[index])).permute(2, 0, 1) / 255
        torch.testing.assert_close(
            inputs["pixel_values"][index, :, :height, :width],
            (pixels - MEAN) / STD,
            rtol=0,
            atol=1e-5,
        )


def test_pixels_do_not_depend_on_the_batch():
    """Grouping by shape keeps the order of images."""
    images = random_images((30, 40), (40, 30), (30, 40), (40, 30), (30, 40))
    processor = DetrImageProcessor(size={"height": 50, "width": 60})
    batch = processor(images, return_tensors="pt")["pixel_values"]
    ungrouped = processor(images, disable_grouping=True, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch, ungrouped, rtol=0, atol=0)
    for image, pixels in zip(images, batch, strict=True):
        alone = processor(image, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(pixels, alone, rtol=0, atol=0)


def test_without_padding():
    """With `do_pad=False` there is no mask, and different sizes raise."""
    processor = DetrImageProcessor(size=SIZE, do_pad=False)
    assert set(processor(random_images((30, 40), (30, 40)), return_tensors="pt")) == {
        "pixel_values"
    }
    with pytest.raises(ValueError, match="do_pad is False; set do_pad=True"):
        processor(random_images((30, 40), (40, 30)), return_tensors="pt")


def test_invalid_images_raise():
    """The error has the index of the image; see test_image_reading.py."""
    images: list = random_images((30, 40), (30, 40))
    with pytest.raises(ValueError, match="image 2 .*NaN"):
        DetrImageProcessor()([*images, torch.full((3, 5, 6), torch.nan)])
    with pytest.raises(ValueError, match="image 2 .*input_data_format"):
        DetrImageProcessor()([*images, np.zeros((3, 480, 3), np.uint8)])


def test_normalized_tensors_can_be_padded():
    """Without rescaling and normalizing, any values are valid."""
    images = [torch.randn(3, 20, 30), torch.randn(3, 25, 20)]
    processor = DetrImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels[0, :, :20], images[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match="image 0 .*do_normalize=False"):
        DetrImageProcessor()(images)


@pytest.mark.parametrize(
    ("count", "mean"),
    [(1, 0.5), (1, [0.5]), (3, 0.5), (3, [0.5]), (4, 0.5), (4, None), (6, 0.5), (6, None)],
)
def test_images_of_any_number_of_channels_equal_transformers(count, mean):
    """Mean and deviation of n numbers, or one number, fit images of n channels."""
    mean = mean or [0.1 + 0.1 * channel for channel in range(count)]
    settings = {"size": SIZE, "image_mean": mean, "image_std": mean}
    images = [
        GENERATOR.integers(0, 256, (*hw, count), dtype=np.uint8) for hw in ((30, 40), (45, 40))
    ]
    ours, peer = (
        kind(**settings)(images, input_data_format="channels_last", return_tensors="pt")
        for kind in (DetrImageProcessor, PeerImageProcessor)
    )
    assert ours["pixel_values"].shape == (2, count, 72, 85)
    torch.testing.assert_close(dict(ours), dict(peer), rtol=0, atol=1e-6)


def test_gray_images_keep_their_channel_with_one_number():
    """A model of one channel gets one; a model of three channels gets RGB, as by default."""
    gray = random_images((30, 40))[0].convert("L")
    one = DetrImageProcessor(size=SIZE, image_mean=0.5, image_std=0.25)
    three = DetrImageProcessor(size=SIZE, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    peer = PeerImageProcessor(size=SIZE, image_mean=0.5, image_std=0.25)
    pixels = one(gray, return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 1, 64, 85)
    expected = peer(gray, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    for inputs in (three(gray, return_tensors="pt"), one(gray, do_convert_rgb=True)):
        assert torch.equal(inputs["pixel_values"], pixels.expand(-1, 3, -1, -1))


def test_images_of_a_batch_have_the_same_number_of_channels():
    """The error says how to convert them."""
    color = random_images((30, 40))[0]
    processor = DetrImageProcessor(size=SIZE, image_mean=0.5, image_std=0.5)
    with pytest.raises(ValueError, match=r"have \[1, 3\] channels; set do_convert_rgb=True"):
        processor([color, color.convert("L")])
    assert processor([color, color.convert("L")], do_convert_rgb=True)["pixel_values"].shape[1] == 3


@pytest.mark.parametrize("do_convert_rgb", [None, True])
def test_transparency_as_in_transformers(do_convert_rgb):
    """Alpha is dropped, or blended onto white with `do_convert_rgb`."""
    pixels = GENERATOR.integers(0, 256, (30, 40, 4), dtype=np.uint8)
    image = PIL.Image.fromarray(pixels)
    ours = DetrImageProcessor(do_resize=False, do_convert_rgb=do_convert_rgb)
    color = pixels[..., :3].astype(np.float64)
    if do_convert_rgb:
        alpha = pixels[..., 3:] / 255
        color = (color * alpha + 255 * (1 - alpha)).round()
    expected = (torch.from_numpy(color).permute(2, 0, 1).float() / 255 - MEAN) / STD
    torch.testing.assert_close(
        ours(image, return_tensors="pt")["pixel_values"][0], expected, rtol=0, atol=1e-5
    )


def test_device_is_used():
    """Images are processed on the given device; the meta device replaces an accelerator."""
    image = torch.randint(0, 256, (3, 30, 40), dtype=torch.uint8)
    inputs = DetrImageProcessor(size=SIZE)(image, record(), device="meta", return_tensors="pt")
    tensors = [inputs["pixel_values"], inputs["pixel_mask"], *inputs["labels"][0].values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# --- targets --------------------------------------------------------------------------------------


def test_targets_of_a_padded_batch_are_relative_to_each_image():
    """Boxes, `size` and `orig_size` don't depend on the padding."""
    images = random_images((30, 40), (80, 40))
    inputs = DetrImageProcessor(size=SIZE)(images, [record(1), record(2)], return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 100, 85)
    first, second = inputs["labels"]
    for label, (width, height) in ((first, (40, 30)), (second, (40, 80))):
        expected = torch.tensor([[20 / width, 9 / height, 20 / width, 8 / height]])
        torch.testing.assert_close(label["boxes"], expected, rtol=0, atol=1e-6)
        assert label["orig_size"].tolist() == [height, width]
    assert first["size"].tolist() == [64, 85] and second["size"].tolist() == [100, 50]


def test_targets_in_pixels_of_the_resized_image():
    """With `do_convert_annotations=False`, boxes are corners in pixels."""
    image = random_images((30, 40))[0]
    processor = DetrImageProcessor(size={"height": 60, "width": 120}, do_convert_annotations=False)
    (label,) = processor(image, record(), return_tensors="pt")["labels"]
    expected = torch.tensor([[30.0, 10.0, 90.0, 26.0]])
    torch.testing.assert_close(label["boxes"], expected, rtol=0, atol=1e-4)


def test_annotations_refer_to_the_upright_image():
    """`orig_size` is the size with the EXIF orientation applied."""
    image = random_images((30, 40))[0]
    image.getexif()[0x0112] = 6
    (label,) = DetrImageProcessor(size=SIZE)(image, record(), return_tensors="pt")["labels"]
    assert label["orig_size"].tolist() == [40, 30]
    expected = torch.tensor([[20 / 30, 9 / 40, 20 / 30, 8 / 40]])
    torch.testing.assert_close(label["boxes"], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("return_tensors", "kind"), [(None, torch.Tensor), ("pt", torch.Tensor), ("np", np.ndarray)]
)
def test_return_tensors(return_tensors, kind):
    """Inputs and labels have the requested types."""
    inputs = DetrImageProcessor(size=SIZE)(
        random_images((30, 40)), [record()], return_tensors=return_tensors
    )
    values = [inputs["pixel_values"], inputs["pixel_mask"], *inputs["labels"][0].values()]
    assert len(values) == 9 and all(isinstance(value, kind) for value in values)


def test_annotations_that_do_not_match_the_images_raise():
    """Images aren't paired with the annotations of other images."""
    images = random_images((30, 40), (30, 40))
    with pytest.raises(ValueError, match="1 annotations for 2 images"):
        DetrImageProcessor()(images, record())
    with pytest.raises(TypeError, match="annotations is a str"):
        DetrImageProcessor()(images, "annotations.json")
    with pytest.raises(ValueError, match="image_id 2, annotation 0 has bbox"):
        DetrImageProcessor()(images, [record(1), record(2, (1, 2, float("nan"), 4))])


@pytest.mark.parametrize("settings", [{}, {"do_resize": False}, {"do_convert_annotations": False}])
def test_keypoints_equal_transformers(settings):
    """Keypoints are carried along; they stay in pixels of the original image."""
    images = random_images((37, 50), (45, 40))
    entries = [
        {"bbox": [1, 2, 20, 18], "category_id": 1, "area": 9.5, "keypoints": [3, 4, 2, 5, 6.5, 1]},
        {"bbox": [0, 0, 9, 9], "category_id": 0, "area": 8, "keypoints": [7, 8, 2, 0, 0, 0]},
        {"bbox": [1, 1, 9, 9], "category_id": 0, "area": 8, "iscrowd": 1, "keypoints": [0] * 6},
    ]
    annotations = [{"image_id": 1, "annotations": entries}, {"image_id": 2, "annotations": []}]
    first, second = check_same_labels(images, annotations, settings)
    expected = [[3, 4, 2], [5, 6.5, 1], [7, 8, 2], [0, 0, 0]]
    assert first["keypoints"].tolist() == expected and "keypoints" not in second


# --- masks ----------------------------------------------------------------------------------------

MASK_SETTINGS = [
    {},
    {"do_convert_annotations": False},
    {"size": {"height": 48, "width": 56}},
    {"do_resize": False},
    {"pad_size": {"height": 120, "width": 130}},
    {"size": {"shortest_edge": 17, "longest_edge": 30}},
]


def mask_annotation(image_id: int, height: int, width: int) -> dict:
    """Make an annotation with random triangles and an object with two parts."""
    triangles = GENERATOR.uniform(0, (width, height), (4, 3, 2)).round(2)
    parts = [[triangle.ravel().tolist()] for triangle in triangles]
    parts.insert(2, parts[0] + parts[3])
    entries = [
        {"bbox": [1, 2, 20, 18], "category_id": index, "area": 9.5, "segmentation": part}
        for index, part in enumerate(parts)
    ]
    return {"image_id": image_id, "annotations": entries}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("settings", MASK_SETTINGS, ids=str)
def test_masks_of_polygons_equal_transformers(settings):
    """Masks are equal after reading, resizing and padding."""
    pytest.importorskip("pycocotools", reason="transformers reads polygons with pycocotools")
    sizes_hw = [(37, 50), (45, 40)]
    images = random_images(*sizes_hw)
    annotations = [mask_annotation(index, *hw) for index, hw in enumerate(sizes_hw)]
    check_same_labels(images, annotations, settings, return_segmentation_masks=True)


@pytest.mark.filterwarnings("ignore:.*decoding and encoding.*:DeprecationWarning")  # torchvision
@pytest.mark.parametrize("return_masks", [None, True, False])
@pytest.mark.parametrize("settings", MASK_SETTINGS, ids=str)
def test_panoptic_targets_equal_transformers(settings, return_masks, tmp_path):
    """Panoptic targets are equal, with crowds, with and without masks."""
    sizes_hw = [(37, 50), (45, 40)]
    annotations = []
    for index, (height, width) in enumerate(sizes_hw):
        blocks = GENERATOR.integers(0, 5, (height // 5 + 1, width // 5 + 1))
        ids = 70_001 * blocks.repeat(5, 0).repeat(5, 1)[:height, :width]
        write_png(tmp_path / f"{index}.png", ids)
        segments = [
            {"id": 70_001 * n, "category_id": n, "iscrowd": n % 2, "area": 100 * n}
            for n in range(1, 5)
        ]
        annotations.append(
            {"image_id": index, "file_name": f"{index}.png", "segments_info": segments}
        )
    settings = {**settings, "format": "coco_panoptic"}
    options = {"masks_path": tmp_path, "return_segmentation_masks": return_masks}
    labels = check_same_labels(random_images(*sizes_hw), annotations, settings, **options)
    assert all(("masks" in label) == (return_masks is not False) for label in labels)
    assert labels[0]["iscrowd"].tolist() == [1, 0, 1, 0]


def check_same_labels(
    images: list[PIL.Image.Image], annotations: list[dict], settings: dict, **options: object
) -> list[dict]:
    settings = {"size": SIZE, **settings}
    ours, peer = (
        processor(**settings)(images, annotations, return_tensors="pt", **options)["labels"]
        for processor in (DetrImageProcessor, PeerImageProcessor)
    )
    for label, expected in zip(ours, peer, strict=True):
        check_label(label, expected, settings)
    return ours


def test_masks_are_padded_with_their_image():
    """Masks have the size of the canvas and are False on the padding."""
    images = random_images((30, 40), (80, 40))
    whole = [[0, 0, 40, 0, 40, 80, 0, 80]]
    annotations = [record(1), record(2)]
    for annotation in annotations:
        annotation["annotations"][0]["segmentation"] = whole
    inputs = DetrImageProcessor(size=SIZE)(
        images, annotations, return_segmentation_masks=True, return_tensors="pt"
    )
    for pixel_mask, label in zip(inputs["pixel_mask"], inputs["labels"], strict=True):
        assert label["masks"].dtype == torch.bool
        assert torch.equal(label["masks"], pixel_mask[None].bool())


@pytest.mark.parametrize("kind", [ConditionalDetrImageProcessor, DetrImageProcessor])
def test_masks_in_numpy_and_on_devices(kind):
    """Masks have the requested type and device."""
    image, annotation = random_images((30, 40))[0], mask_annotation(1, 30, 40)
    options = {"return_segmentation_masks": True, "do_resize": False}
    (label,) = kind()(image, annotation, return_tensors="np", **options)["labels"]
    assert label["masks"].dtype == np.bool_ and label["masks"].shape == (5, 30, 40)
    (label,) = kind()(image, annotation, return_tensors="pt", device="meta", **options)["labels"]
    assert label["masks"].device.type == "meta"


def test_invalid_masks_raise(tmp_path):
    """The error has the image id and the index of the annotation."""
    images = random_images((30, 40), (30, 40))
    with_mask = mask_annotation(1, 30, 40)
    with pytest.raises(ValueError, match="image_id 2, annotation 0 has no 'segmentation'"):
        DetrImageProcessor()(images, [with_mask, record(2)], return_segmentation_masks=True)
    broken = mask_annotation(2, 30, 40)
    broken["annotations"][3]["segmentation"] = {"size": [30, 40], "counts": "0P"}
    with pytest.raises(ValueError, match="image_id 2, annotation 3 has .*are truncated"):
        DetrImageProcessor()(images, [with_mask, broken], return_segmentation_masks=True)
    panoptic = {"image_id": 3, "file_name": "../a.png", "segments_info": []}
    with pytest.raises(ValueError, match="image_id 3 has file_name '../a.png', which is outside"):
        DetrImageProcessor(format="coco_panoptic")(images[0], panoptic, masks_path=tmp_path)


def test_masks_path_requires_the_panoptic_format(tmp_path):
    """`masks_path` isn't ignored, and records of the other format raise."""
    image = random_images((30, 40))[0]
    panoptic = {"image_id": 3, "file_name": "a.png", "segments_info": []}
    with pytest.raises(ValueError, match="format is 'coco_panoptic' and masks_path is None"):
        DetrImageProcessor(format="coco_panoptic")(image, panoptic)
    with pytest.raises(ValueError, match="format is 'coco_detection' and masks_path is .*; pass"):
        DetrImageProcessor()(image, panoptic, masks_path=tmp_path)
    with pytest.raises(ValueError, match="'coco_panoptic' requires 'segments_info'"):
        DetrImageProcessor()(image, panoptic)
    # The format can be set for one call, and without annotations no folder is required.
    write_png(tmp_path / "a.png", np.zeros((30, 40), int))
    (label,) = DetrImageProcessor(size=SIZE)(
        image, panoptic, format="coco_panoptic", masks_path=str(tmp_path)
    )["labels"]
    assert label["masks"].shape == (0, 64, 85)
    assert "labels" not in DetrImageProcessor(format="coco_panoptic", size=SIZE)(image)


def test_panoptic_files_equal_those_of_transformers(tmp_path):
    """Processor files of panoptic checkpoints are written with the same content."""
    ours = DetrImageProcessor(format="coco_panoptic", size=SIZE)
    peer = PeerImageProcessor(format="coco_panoptic", size=SIZE)
    assert json.loads(ours.to_json_string()) == json.loads(peer.to_json_string())
    ours.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert content["format"] == "coco_panoptic"
    for cls in (PeerImageProcessor, DetrImageProcessor):
        assert json.loads(cls.from_pretrained(tmp_path).to_json_string()) == content


# --- results --------------------------------------------------------------------------------------


def test_detections_equal_transformers():
    """Boxes in pixels, threshold and labels are equal."""
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        logits=3 * torch.randn(2, 20, 6, generator=generator),
        pred_boxes=torch.rand(2, 20, 4, generator=generator),
    )
    for sizes in (None, [(30, 40), (50, 20)], torch.tensor([[30, 40], [50, 20]])):
        arguments = {"threshold": 0.4, "target_sizes": sizes}
        ours = DetrImageProcessor().post_process_object_detection(outputs, **arguments)
        peer = PeerImageProcessor().post_process_object_detection(outputs, **arguments)
        assert 0 < len(ours[0]["scores"]) < 20
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-6)


def test_sigmoid_detections_equal_transformers():
    """The best pairs of query and class are equal, with the boxes of the queries."""
    generator = torch.Generator().manual_seed(0)
    outputs = SimpleNamespace(
        logits=3 * torch.randn(2, 20, 6, generator=generator),
        pred_boxes=torch.rand(2, 20, 4, generator=generator),
    )
    for sizes, top_k in ((None, 100), ([(30, 40), (50, 20)], 7), ([(30, 40), (50, 20)], 1000)):
        arguments = {"threshold": 0.4, "target_sizes": sizes, "top_k": top_k}
        ours, peer = (
            processor().post_process_object_detection(outputs, **arguments)
            for processor in (
                ConditionalDetrImageProcessor,
                transformers.ConditionalDetrImageProcessor,
            )
        )
        assert len(ours[0]["scores"]) > 5
        torch.testing.assert_close(ours, peer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("top_k", [-1, 0, None, 2.5, True])
def test_wrong_numbers_of_detections(top_k):
    """They are named before torch's errors, which don't say what is wrong."""
    outputs = SimpleNamespace(logits=torch.zeros(1, 5, 3), pred_boxes=torch.zeros(1, 5, 4))
    with pytest.raises(ValueError, match=f"top_k is {top_k}; expected an integer of at least 1"):
        ConditionalDetrImageProcessor().post_process_object_detection(outputs, top_k=top_k)


def test_wrong_number_of_target_sizes():
    """Boxes aren't scaled by the size of another image."""
    outputs = SimpleNamespace(logits=torch.zeros(2, 5, 3), pred_boxes=torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="1 entries for 2 images"):
        DetrImageProcessor().post_process_object_detection(outputs, target_sizes=[(30, 40)])


def test_no_warning_for_valid_inputs():
    """Images and valid annotations don't cause warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DetrImageProcessor(size=SIZE)(random_images((30, 40)), [record()], return_tensors="pt")
