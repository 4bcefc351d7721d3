"""Conversion of all kinds of images to tensors, and errors that name the image."""

import base64
import importlib
import io
import struct
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from zlib import compress, crc32

import numpy as np
import PIL.Image
import PIL.ImageSequence
import pytest
import torch

from hf_detr.image_processing import image_reading
from hf_detr.image_processing.image_reading import read_images

GENERATOR = np.random.default_rng(0)
RGB = GENERATOR.integers(0, 256, (11, 13, 3), dtype=np.uint8)
GRAY = GENERATOR.integers(0, 256, (11, 13), dtype=np.uint8)
ALPHA = GENERATOR.integers(0, 256, (11, 13, 1), dtype=np.uint8)
RGBA = np.concatenate([RGB, ALPHA], axis=-1)


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def gray3(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([array] * 3))


def read_one(image: object, **arguments: object) -> torch.Tensor:
    (pixels,) = read_images(image, **arguments)
    return pixels


def assert_same(pixels: torch.Tensor, expected: torch.Tensor, atol: float = 0) -> None:
    torch.testing.assert_close(pixels, expected, rtol=0, atol=atol)


def palette_with_transparency() -> PIL.Image.Image:
    image = PIL.Image.fromarray(GRAY, "L").convert("P")
    image.info["transparency"] = bytes(range(256))
    return image


def exif_rotated() -> PIL.Image.Image:
    """Make an image whose EXIF orientation is a rotation by 90 degrees."""
    image = PIL.Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (PIL.Image.fromarray(RGB), chw(RGB)),
        (PIL.Image.fromarray(GRAY), gray3(GRAY)),
        (PIL.Image.fromarray(RGBA), chw(RGB)),
        (PIL.Image.fromarray(np.stack([GRAY, GRAY.T.reshape(11, 13)], -1), "LA"), gray3(GRAY)),
        (PIL.Image.fromarray(GRAY).convert("P"), gray3(GRAY)),
        (palette_with_transparency(), gray3(GRAY)),
        (PIL.Image.fromarray(255 - RGB).convert("CMYK"), chw(255 - RGB)),
        (PIL.Image.fromarray(GRAY > 127), gray3((GRAY > 127).astype(np.uint8) * 255)),
        (PIL.Image.fromarray(GRAY.astype(np.int32)), gray3(GRAY)),
        (PIL.Image.fromarray(GRAY.astype(np.float32)), gray3(GRAY).float() / 255),
        (PIL.Image.fromarray(GRAY.astype(np.uint16) * 257), gray3(GRAY)),
        (PIL.Image.fromarray((GRAY.astype(np.uint16) * 257).astype(">u2")), gray3(GRAY)),
        (exif_rotated(), chw(np.rot90(RGB, -1))),
    ],
    ids=[
        "RGB",
        "L",
        "RGBA",
        "LA",
        "P",
        "P-transparency",
        "CMYK",
        "1",
        "I",
        "F",
        "I;16",
        "I;16B",
        "EXIF",
    ],
)
# The mode argument of fromarray is deprecated, but necessary for LA.
@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
def test_pil_modes(image, expected):
    """Images of all modes are converted without clipping."""
    assert_same(read_one(image), expected)


@pytest.mark.parametrize(
    "image",
    [
        RGB,
        RGB[:, ::-1][:, ::-1],
        np.asfortranarray(RGB),
        RGB.transpose(2, 0, 1),
        torch.from_numpy(RGB),
        chw(RGB),
        RGBA,
        RGBA.transpose(2, 0, 1),
        RGB.astype(np.int64),
        RGB.astype(">i4"),
        RGB.astype(np.uint16) * 257,
        torch.from_numpy(RGB.astype(np.uint16) * 257),
        torch.from_numpy(RGB).to(torch.int32),
    ],
)
def test_arrays_and_tensors_of_integers(image):
    """All layouts, strides, byte orders and integer types are supported."""
    assert_same(read_one(image), chw(RGB))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "F"])
def test_reading_in_strips_gives_the_same_pixels(mode, monkeypatch):
    """Large images are read in strips; the last may be shorter, or a row longer than a strip."""
    size = (7, 5)
    numbers = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    if mode in ("I;16", "F"):
        deep = numbers.astype("u2") * 257
        image = PIL.Image.fromarray(deep if mode == "I;16" else numbers.astype("f4"))
    else:
        image = PIL.Image.frombytes("RGB", size, numbers.repeat(3).tobytes()).convert(mode)
    assert image.mode == mode
    (whole,) = read_images(image)
    monkeypatch.setattr(image_reading, "MANY_PIXELS", 34)
    for pixels in (3, 14, 100):
        monkeypatch.setattr(image_reading, "STRIP_PIXELS", pixels)
        (strips,) = read_images(image)
        torch.testing.assert_close(strips, whole, rtol=0, atol=0)


def test_read_only_arrays_are_read_without_warning():
    """Memory-mapped arrays don't cause torch's warning."""
    frozen = RGB.copy()
    frozen.flags.writeable = False
    assert_same(read_one(frozen), chw(RGB))


@pytest.mark.parametrize("image", [GRAY, GRAY[None], GRAY[..., None], torch.from_numpy(GRAY)])
def test_gray_arrays(image):
    """Gray images may have a channel dimension."""
    assert_same(read_one(image), gray3(GRAY))


def test_sixteen_bits_are_scaled_by_rounding():
    """Values are scaled and rounded to the nearest of 256 levels, not clipped."""
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], dtype=np.uint16)
    expected = torch.tensor([0, 0, 1, 1, 128, 254, 255, 255], dtype=torch.uint8)
    assert_same(read_one(values)[0, 0], expected)


def test_booleans_are_black_and_white():
    """Masks can be read as images."""
    assert read_one(np.array([[True, False]]))[:, 0].tolist() == [[255, 0]] * 3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_floats_up_to_one_stay_and_up_to_255_are_divided(dtype):
    """Floats are rescaled once."""
    unit = (RGB / 255).astype(dtype)
    assert_same(read_one(unit), chw(unit.astype(np.float32)))
    assert_same(read_one(RGB.astype(dtype)), chw(RGB).float() / 255, atol=1e-7)
    assert_same(read_one(RGB.astype(dtype), unit_floats=False), chw(RGB).float())


@pytest.mark.parametrize(
    ("low", "high", "message"),
    [
        (-0.1, 1.0, "do_normalize=False"),
        (-2.1, 2.6, "do_normalize=False"),
        (0.0, 256.0, "0 … 1 or 0 … 255"),
        (0.0, 1.05, "clip it"),
        (0.0, np.nan, "NaN"),
        (0.0, np.inf, "infinite"),
        (-np.inf, 1.0, "infinite"),
    ],
)
def test_floats_of_ambiguous_or_invalid_range_raise(low, high, message):
    """The range of pixels isn't guessed."""
    image = np.full((5, 6, 3), 0.5, dtype=np.float32)
    image[2, 3], image[4, 0] = low, high
    with pytest.raises(ValueError, match=message) as error:
        read_images([RGB, image])
    assert str(error.value).startswith("image 1 ")


def test_normalized_floats_are_valid_without_range_check():
    """Normalized images can be resized and padded."""
    image = torch.linspace(-2, 3, 60).reshape(3, 4, 5)
    assert_same(read_one(image, unit_floats=False, check_range=False), image)
    with pytest.raises(ValueError, match="NaN"):
        read_images(image * torch.nan, unit_floats=False, check_range=False)


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 480, 3), (1, 5, 4), (4, 5, 1)])
def test_ambiguous_layouts_raise_without_input_data_format(shape):
    """The layout isn't guessed."""
    image = GENERATOR.integers(0, 256, shape, dtype=np.uint8)
    with pytest.raises(ValueError, match="image 0 .*input_data_format"):
        read_images(image)
    first = read_one(image, input_data_format="channels_first")
    last = read_one(image, input_data_format="channels_last")
    assert first.shape == (3, *shape[1:]) and last.shape == (3, *shape[:2])
    assert_same(first[0], torch.from_numpy(image[0]))
    assert_same(last[0], torch.from_numpy(image[..., 0].copy()))


def test_layout_of_pil_images_is_never_ambiguous():
    """The height of a small PIL image isn't mistaken for the channels."""
    assert_same(read_one(PIL.Image.fromarray(RGB[:3, :3])), chw(RGB[:3, :3]))
    pixels = read_one(PIL.Image.fromarray(RGB[:3]), input_data_format="channels_first")
    assert_same(pixels, chw(RGB[:3]))


@pytest.mark.parametrize(
    ("image", "exception", "message"),
    [
        (np.zeros((5, 6, 2), np.uint8), ValueError, r"\(5, 6, 2\)"),
        (np.zeros((5, 6, 5), np.uint8), ValueError, r"\(5, 6, 5\)"),
        (np.zeros((7,), np.uint8), ValueError, r"\(7,\)"),
        (np.zeros((1, 1, 5, 6, 3), np.uint8), ValueError, "expected"),
        (np.zeros((0, 6, 3), np.uint8), ValueError, "no pixels"),
        (np.zeros((0, 6), np.uint8), ValueError, "no pixels"),
        (PIL.Image.new("RGB", (0, 5)), ValueError, "no pixels"),
        (np.full((5, 6, 3), 256, np.int32), ValueError, "256"),
        (np.full((5, 6, 3), -1, np.int16), ValueError, "-1"),
        (torch.full((3, 5, 6), 300), ValueError, "300"),
        (PIL.Image.fromarray(np.full((5, 6), 70000, np.int32)), ValueError, "70000"),
        (np.zeros((5, 6, 3), np.complex64), TypeError, "complex64"),
        (torch.zeros(3, 5, 6, dtype=torch.complex64), TypeError, "complex64"),
        (np.full((5, 6), "a"), TypeError, "expected integers"),
        (None, TypeError, "NoneType"),
        (3.5, TypeError, "float"),
        (b"abc", TypeError, "bytes"),
        ("no/such/file.png", ValueError, "can't be opened: it is no image, or no file"),
        (Path("no/such/file.png"), ValueError, "can't be opened: .*No such file"),
    ],
)
def test_invalid_images_raise(image, exception, message):
    """The error has the index of the image."""
    with pytest.raises(exception, match=message) as error:
        read_images([RGB, GRAY, image])
    assert str(error.value).startswith("image 2 ")


def test_wrong_layout_name_and_empty_batch():
    """Unknown layouts and empty batches raise."""
    with pytest.raises(ValueError, match="input_data_format is 'hwc'"):
        read_images(RGB, input_data_format="hwc")
    with pytest.raises(ValueError, match="are no images"):
        read_images([])


def test_lists_nested_lists_and_batched_arrays_keep_their_order():
    """The order of images is that of the annotations."""
    images = [chw(RGB), chw(255 - RGB), chw(RGB // 2)]
    batch = torch.stack(images)
    for form in (images, tuple(images), [images[:1], images[1:]], batch, batch.numpy()):
        pixels = read_images(form)
        assert_same(torch.stack(pixels), batch)


def test_files_paths_and_base64(tmp_path):
    """Files have the same upright pixels as opened images."""
    path = tmp_path / "image.png"
    exif_rotated().save(path, exif=exif_rotated().getexif())
    buffer = io.BytesIO()
    PIL.Image.fromarray(RGB).save(buffer, "PNG")
    expected = chw(np.rot90(RGB, -1))
    assert_same(read_one(str(path)), expected)
    assert_same(read_one(Path(path)), expected)
    assert_same(read_one(base64.b64encode(buffer.getvalue()).decode()), chw(RGB))


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_truncated_files_raise(tmp_path, suffix):
    """Truncated images raise as a path and as an opened PIL image."""
    noise = GENERATOR.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    path = tmp_path / f"image.{suffix}"
    PIL.Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"image 1 \(.*can't be decoded"):
        read_images([RGB, str(path)])
    with PIL.Image.open(path) as image, pytest.raises(ValueError, match="image 0 can't be decoded"):
        read_images(image)


@pytest.mark.parametrize("limit", [100, 60])
def test_decompression_bombs_raise(tmp_path, monkeypatch, limit):
    """Files above PIL's limit raise, also where PIL only warns."""
    path = tmp_path / "image.png"
    PIL.Image.fromarray(RGB).save(path)  # 143 pixels
    opened = PIL.Image.open(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)
    for image in (str(path), opened):
        with pytest.raises(ValueError, match="image 0 .*decompression bomb"):
            read_images(image)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert_same(read_one(opened), chw(RGB))
    opened.close()


def test_environment_sets_the_limit_of_pixels(tmp_path, monkeypatch):
    """Processes that load data, and commands without Python, have the user's limit."""
    path = tmp_path / "image.png"
    PIL.Image.fromarray(RGB).save(path)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setenv("HF_DETR_MAX_IMAGE_PIXELS", "142")
    importlib.reload(image_reading)
    with pytest.raises(ValueError, match=r"MAX_IMAGE_PIXELS = 142 .* HF_DETR_MAX_IMAGE_PIXELS in"):
        read_images(str(path))
    monkeypatch.setenv("HF_DETR_MAX_IMAGE_PIXELS", "143")
    importlib.reload(image_reading)
    assert_same(read_one(str(path)), chw(RGB))
    monkeypatch.setenv("HF_DETR_MAX_IMAGE_PIXELS", "4e8")
    with pytest.raises(ValueError, match="HF_DETR_MAX_IMAGE_PIXELS is '4e8'; expected a number"):
        importlib.reload(image_reading)


def test_alpha_is_blended_onto_white_on_request():
    """Transparent pixels become white, opaque ones are unchanged, integers are rounded."""
    alpha = ALPHA.astype(np.float64) / 255
    exact = torch.from_numpy((RGB * alpha + 255 * (1 - alpha)).transpose(2, 0, 1))
    for image in (PIL.Image.fromarray(RGBA), RGBA, chw(RGBA)):
        blended = read_one(image, blend_alpha=True)
        assert blended.dtype == torch.uint8
        torch.testing.assert_close(blended.double(), exact, rtol=0, atol=0.5001)
    floats = read_one(RGBA.astype(np.float32) / 255, blend_alpha=True)
    torch.testing.assert_close(floats.double() * 255, exact, rtol=0, atol=1e-3)
    assert_same(read_one(PIL.Image.fromarray(RGB), blend_alpha=True), chw(RGB))
    with pytest.raises(ValueError, match="0 … 1"):
        read_images(RGBA.astype(np.float32), blend_alpha=True)


# --- URLs and base64 ------------------------------------------------------------------------------


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a log."""

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of `tmp_path`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as running:
        Thread(target=running.serve_forever, args=(0.02,)).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.parametrize(
    "image",
    [PIL.Image.fromarray(GRAY.astype(np.uint16) * 257), PIL.Image.fromarray(RGBA)],
    ids=["16 bits", "alpha"],
)
def test_urls_and_base64_have_the_pixels_of_files(image, tmp_path, server):
    """Images of 16 bits aren't white, and alpha isn't lost, on any way to an image."""
    path = tmp_path / "ein Bild für mich.png"
    image.save(path)
    encoded = base64.b64encode(path.read_bytes()).decode()
    expected = read_one(path, blend_alpha=True)
    assert expected.float().std() > 0
    for source in (f"{server}/{path.name}", encoded, f"data:image/png;base64,{encoded}"):
        assert_same(read_one(source, blend_alpha=True), expected)


def test_urls_without_an_image_raise(server):
    """The error has the reason of the server."""
    with pytest.raises(ValueError, match="image 0 .*can't be opened: HTTP Error 404"):
        read_images(f"{server}/missing.png")


# --- channels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4, 6])
def test_images_of_any_number_of_channels(count):
    """Images of `num_channels` channels keep their values, in both layouts."""
    array = GENERATOR.integers(0, 256, (11, 13, count), dtype=np.uint8)
    for image in (array, array.transpose(2, 0, 1), torch.from_numpy(array)):
        assert_same(read_one(image, num_channels=count), chw(array))
    with pytest.raises(ValueError, match=f"expected {count}, the length of image_mean"):
        read_images(RGB, num_channels=count)


def test_channels_of_each_image_can_be_kept():
    """Gray and transparent images aren't converted with `num_channels=None`."""
    images = [PIL.Image.fromarray(GRAY), PIL.Image.fromarray(RGB), PIL.Image.fromarray(RGBA), GRAY]
    expected = [torch.from_numpy(GRAY)[None], chw(RGB), chw(RGBA), torch.from_numpy(GRAY)[None]]
    for pixels, one in zip(read_images(images, num_channels=None), expected, strict=True):
        assert_same(pixels, one)
    six = np.concatenate([RGB, RGB], axis=-1)
    with pytest.raises(ValueError, match="1, 3 or 4. For others, pass input_data_format"):
        read_images(six, num_channels=None)
    assert_same(read_one(six, input_data_format="channels_last", num_channels=None), chw(six))


# --- more than 8 bits, more than one page ---------------------------------------------------------


def twelve_bit_tiff(values: np.ndarray) -> io.BytesIO:
    """Encode values (H, W) in 0 … 4095 as a TIFF file that declares 12 bits per sample."""
    height, width = values.shape
    rows = [int("".join(f"{value:012b}" for value in row), 2) for row in values]
    data = b"".join(row.to_bytes(width * 12 // 8, "big") for row in rows)
    short, long = 3, 4
    tags = [
        *((256, short, width), (257, short, height), (258, short, 12), (259, short, 1)),
        *((262, short, 1), (273, long, 8), (277, short, 1), (278, short, height)),
        (279, long, len(data)),
    ]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(data))
    return io.BytesIO(header + data + struct.pack("<H", len(tags)) + entries + bytes(4))


def test_twelve_bits_declared_by_the_file_are_scaled():
    """A 12-bit TIFF isn't black: its values become the nearest of 256 levels."""
    values = GENERATOR.integers(0, 4096, (6, 8))
    values[0, :2] = 0, 4095
    with PIL.Image.open(twelve_bit_tiff(values)) as image:
        assert image.mode == "I;16"
        pixels = read_one(image)
    expected = torch.from_numpy(values / 4095 * 255)
    torch.testing.assert_close(pixels[0].double(), expected, rtol=0, atol=0.51)


@pytest.mark.parametrize(("maximum", "plain"), [(65535, False), (1023, False), (1023, True)])
def test_portable_gray_maps_of_16_bits_are_scaled(maximum, plain):
    """PIL opens them with 32 bits; dark ones aren't taken for images of 8 bits."""
    for brightest in (maximum, maximum // 5):
        values = GENERATOR.integers(0, brightest + 1, (6, 8))
        data = " ".join(map(str, values.ravel())).encode() if plain else values.astype(">u2")
        header = f"P{2 if plain else 5}\n8 6\n{maximum}\n".encode()
        with PIL.Image.open(io.BytesIO(header + bytes(data))) as image:
            assert image.mode == "I"
            pixels = read_one(image)
        expected = torch.from_numpy(values / maximum * 255)
        torch.testing.assert_close(pixels[0].double(), expected, rtol=0, atol=0.51)


def sixteen_bit_png(values: np.ndarray) -> PIL.Image.Image:
    """Encode colors (H, W, 3) of 16 bits, which PIL can't write, as PNG, and open it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc32(name + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", compress(rows)) + chunk(b"IEND", b"")
    return PIL.Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + body))


@pytest.mark.parametrize(
    "make",
    [
        lambda values: values[..., 0],
        lambda values: values,
        lambda values: torch.from_numpy(values),
        lambda values: PIL.Image.fromarray(values[..., 0]),
        sixteen_bit_png,
    ],
    ids=["gray array", "array", "tensor", "I;16", "RGB file"],
)
def test_black_images_of_12_bits_in_16_warn_with_the_remedy(make):
    """Images that use 12 of 16 bits aren't nearly black silently; the remedy works."""
    values = RGB.astype(np.uint16) * 16
    with pytest.warns(UserWarning, match="no value above 4095 .* multiply its pixels by 64 or 16"):
        assert read_one(make(values)).max() <= 16
    # Warnings are errors: neither images of all bits nor images that are really black warn.
    assert read_one(make(values * 16)).max() > 250
    assert read_one(make(values * 0)).max() == 0


@pytest.mark.parametrize("suffix", ["tiff", "gif", "png", "webp"])
def test_lost_pages_are_announced(tmp_path, suffix):
    """Further pages and frames of a file aren't dropped silently; the remedy works."""
    path = tmp_path / f"image.{suffix}"
    pages = [PIL.Image.fromarray(GRAY // 128 * 255), PIL.Image.fromarray(255 - GRAY // 128 * 255)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="several pages or frames, of which only the current one"):
        first = read_one(str(path))
    with PIL.Image.open(path) as image:
        separate = read_images([page.copy() for page in PIL.ImageSequence.Iterator(image)])
    assert_same(separate[0], first)
    assert len(separate) == 2 and separate[0][0, 0, 0] != separate[1][0, 0, 0]
    pages[0].save(path)
    assert read_one(str(path)).shape == first.shape  # without a warning
