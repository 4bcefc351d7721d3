"""Conversion of images of any type to tensors, by default with three channels.

Images become (C, H, W), uint8 in 0 … 255 or float32. Errors name the image's index in the batch.

Values are interpreted by type:

- bool: 0 and 255. uint8: unchanged. uint16 and 16-bit PIL images: scaled to 8 bits. Images of 12
  bits in TIFF files are scaled by their range; in other files of 16 bits they are nearly black,
  which a warning says.
- other integers: must be in 0 … 255.
- floats: 0 … 1 if the largest value is at most 1; 0 … 255 if it is at least 2. A largest value
  between the two is an error, because the image could be a sharpened 0 … 1 image or a nearly black
  0 … 255 image.
- With three channels, gray is repeated, and alpha is dropped, or optionally blended onto white.
- The EXIF orientation of PIL images and files is applied.
- Of files with several pages or frames, the first is read, with a warning.
"""

import base64
import binascii
import io
import os
import string
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO
from urllib.parse import quote
from urllib.request import Request, urlopen

import numpy as np
import PIL.Image
import PIL.ImageFile
import PIL.ImageOps
import torch
from torch import Tensor

from .pixel_conversion import (
    ITS_BYTE,
    checked_floats,
    to_uint8_or_float32,
    warn_about_unused_bits,
    with_channels,
)

CHANNEL_COUNTS = (1, 3, 4)
BITS_PER_SAMPLE, EXIF_ORIENTATION = 0x0102, 0x0112
# Formats of several pages or frames. The others in MPO and PSD files are previews and layers.
PAGED_FORMATS = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")
SECONDS_PER_DOWNLOAD = 60  # without any data
# PIL copies the pixels; for larger images, allocating the memory of the copy is slow.
MANY_PIXELS, STRIP_PIXELS = 10**7, 2**18
LIMIT_NAME = "HF_DETR_MAX_IMAGE_PIXELS"
if _limit := os.environ.get(LIMIT_NAME):
    # PIL refuses and warns by this value too, and processes that load data inherit the variable.
    if not _limit.isdecimal():
        raise ValueError(f"The environment variable {LIMIT_NAME} is {_limit!r}; expected a number.")
    PIL.Image.MAX_IMAGE_PIXELS = int(_limit)


def read_images(
    images: Any,
    input_data_format: str | None = None,
    unit_floats: bool = True,
    check_range: bool = True,
    blend_alpha: bool = False,
    first_index: int = 0,
    num_channels: int | None = 3,
) -> list[Tensor]:
    """Read an image, a batched array or a (nested) list of images, as described above.

    Args:
        images: PIL images, arrays or tensors with 2 or 3 dimensions (4 for batches), paths, URLs or
            base64 strings.
        input_data_format: "channels_first" or "channels_last" for arrays and tensors. Inferred
            from the shape by default.
        unit_floats: whether to scale floats in 0 … 255 to 0 … 1.
        check_range: whether floats must be in 0 … 1 or 0 … 255.
        blend_alpha: whether to blend transparent images onto white instead of dropping alpha.
        first_index: index of the first image in messages.
        num_channels: number of channels that images must have. 3 is RGB, to which gray and
            transparent images are converted. None keeps the channels of each image.

    Raises:
        ValueError: if an image can't be decoded, or has a wrong shape or values out of range.
        TypeError: if something isn't an image.
    """
    layout = getattr(input_data_format, "value", input_data_format)
    if layout not in (None, "channels_first", "channels_last"):
        raise ValueError(
            f"input_data_format is {input_data_format!r}; expected 'channels_first', "
            "'channels_last', or None to infer it from the shape."
        )
    tensors = []
    for index, image in enumerate(_flat(images), first_index):
        name = f"image {index}"
        if isinstance(image, (str, os.PathLike)):
            name += f" ({str(image)[:200]!r})"
        pixels = _channels_first(*_as_tensor(image, layout, name), num_channels, name)
        pixels = to_uint8_or_float32(pixels, name)
        pixels = with_channels(pixels, num_channels, blend_alpha, name)
        if pixels.is_floating_point():
            pixels = checked_floats(pixels, unit_floats, check_range, name)
        tensors.append(pixels)
    if not tensors:
        raise ValueError("There are no images; expected at least one.")
    return tensors


def _flat(images: Any) -> Iterator[Any]:
    """Iterate over the images of nested lists and batched arrays."""
    if isinstance(images, (list, tuple)):
        for image in images:
            yield from _flat(image)
    elif isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        yield from images
    else:
        yield images


def _as_tensor(image: Any, layout: str | None, name: str) -> tuple[Tensor, str | None]:
    """Convert an image to a tensor of any type, and return its layout if it is known."""
    if isinstance(image, (str, os.PathLike)):
        with _open_image(image, name) as opened:
            return _without_copy(_decode(opened, name)), "channels_last"
    if isinstance(image, PIL.Image.Image):
        return _without_copy(_decode(image, name)), "channels_last"
    if isinstance(image, Tensor):
        # Without the dispatch of subclasses such as tv_tensors.
        return image.detach().as_subclass(Tensor), layout
    if isinstance(image, np.ndarray):
        return torch.from_numpy(_torch_compatible(image, name)), layout
    raise TypeError(
        f"{name} is a {type(image).__name__}; expected a PIL image, a NumPy array, a torch tensor, "
        "a path or URL, or a list of these."
    )


def _without_copy(pixels: np.ndarray) -> Tensor:
    """Convert PIL's pixels, which NumPy marks as read-only although they aren't shared."""
    try:
        return torch.from_dlpack(pixels)  # unlike from_numpy, without a warning
    except BufferError:  # NumPy before 2.1
        return torch.from_numpy(pixels.copy())


def _torch_compatible(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers, floats or booleans.")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    # torch supports only native byte order and positive strides, and warns of read-only memory.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    return array


def _open_image(source: str | os.PathLike, name: str) -> PIL.Image.Image:
    try:
        if isinstance(source, os.PathLike) or os.path.isfile(source):
            return PIL.Image.open(source)
        # Not transformers' load_image, which converts to RGB: 16 bits become white, alpha is lost.
        if source.startswith(("http://", "https://")):
            return PIL.Image.open(io.BytesIO(download(source)))
        encoded = source.split(",")[1] if source.startswith("data:image/") else source
        return PIL.Image.open(io.BytesIO(base64.decodebytes(encoded.encode())))
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
        raise ValueError(_bomb_message(name)) from error
    except Exception as error:
        # Their texts name a buffer or its padding, not the source.
        is_unknown = isinstance(error, (PIL.UnidentifiedImageError, binascii.Error))
        reason = "it is no image, or no file" if is_unknown else str(error)[:300]
        raise ValueError(
            f"{name} can't be opened: {reason}. Expected an image file, a URL that "
            "starts with http:// or https://, or a base64 string."
        ) from error


def download(url: str) -> bytes:
    """Download a file."""
    with open_address(url) as response:
        return response.read()


def open_address(url: str) -> BinaryIO:
    """Open a file on the web, to be read while it is downloaded."""
    address = quote(url, safe=string.punctuation)  # spaces and umlauts only
    request = Request(address, headers={"User-Agent": "hf_detr"})
    return urlopen(request, timeout=SECONDS_PER_DOWNLOAD)


def _bomb_message(name: str) -> str:
    return (
        f"{name} has more than PIL.Image.MAX_IMAGE_PIXELS = {PIL.Image.MAX_IMAGE_PIXELS} pixels "
        "and could be a decompression bomb; if you trust the file, raise that limit or set "
        f"{LIMIT_NAME} in the environment."
    )


def _decode(image: PIL.Image.Image, name: str) -> np.ndarray:
    """Decode an upright image, (H, W, 3 or 4) uint8, or (H, W) with 8, 16 or 32 bits."""
    limit = PIL.Image.MAX_IMAGE_PIXELS
    is_from_file = isinstance(image, PIL.ImageFile.ImageFile)
    if is_from_file and limit is not None and image.width * image.height > limit:
        raise ValueError(_bomb_message(name))
    has_16_bits = is_from_file and ";16" in str(image.tile)
    has_12_bits = image.format == "TIFF" and image.tag_v2.get(BITS_PER_SAMPLE) == (12,)
    has_16_bits_as_32 = image.format == "PPM" and image.mode == "I"  # scaled by PIL to 65535
    try:
        image.load()  # NumPy would hide the reason of a failure
        has_pages = image.format in PAGED_FORMATS and getattr(image, "is_animated", False)
        # Deviation: transformers applies the EXIF orientation to files, but not to PIL images.
        # Annotation tools show the upright image, so boxes refer to it.
        if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
            image = PIL.ImageOps.exif_transpose(image)
        pixels = _read_pixels(_to_readable_mode(image))
    except Exception as error:
        raise ValueError(
            f"{name} can't be decoded (mode {image.mode}, size {image.size}): {error}. Check that "
            "the file is complete."
        ) from error
    if has_pages:
        _warn_about_pages()
    if has_12_bits:
        pixels = pixels << 4 | pixels >> 8  # 4095 becomes 65535
    elif has_16_bits_as_32:
        pixels = pixels.astype(np.uint16)
    # PIL reads colors of 16 bits as 8 bits.
    elif has_16_bits and pixels.ndim == 3 and 0 < pixels[..., :3].max() <= ITS_BYTE:
        warn_about_unused_bits()
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _warn_about_pages() -> None:
    # The same text for all images, so that Python shows it once.
    warnings.warn(
        "An image file has several pages or frames, of which only the current one, by default the "
        "first, is read. Save each as a file of its own, or pass them as separate images, such as "
        "[page.copy() for page in PIL.ImageSequence.Iterator(image)].",
        stacklevel=2,
    )


def _read_pixels(image: PIL.Image.Image) -> np.ndarray:
    """Same as `np.asarray(image)`, but in strips for large images, which is three times faster."""
    width, height = image.size
    if width * height <= MANY_PIXELS:
        return np.asarray(image)
    pixels = None
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = np.asarray(image.crop((0, top, width, min(top + rows, height))))
        if pixels is None:
            pixels = np.empty((height, *strip.shape[1:]), strip.dtype)
        pixels[top : top + rows] = strip
    return pixels


def _to_readable_mode(image: PIL.Image.Image) -> PIL.Image.Image:
    # convert("RGB") would clip these at 255.
    if image.mode == "RGB" or image.mode == "F" or image.mode.startswith("I"):
        return image
    if image.mode == "La":
        image = image.convert("LA")
    has_alpha = image.mode[-1] in "aA" or image.info.get("transparency") is not None
    if image.mode == "L" and not has_alpha:
        return image
    # RGBA, because convert("RGB") warns of palettes with transparency; the colors are the same.
    return image.convert("RGBA" if has_alpha else "RGB")


def _channels_first(
    pixels: Tensor, layout: str | None, num_channels: int | None, name: str
) -> Tensor:
    """Return a view (C, H, W) with a valid number of channels and at least one pixel."""
    shape = tuple(pixels.shape)
    counts = CHANNEL_COUNTS if num_channels in (3, None) else (num_channels,)
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim != 3:
        raise ValueError(
            f"{name} has shape {shape}; expected (H, W), (H, W, C) or (C, H, W), or a batch of "
            "these."
        )
    elif (layout or _layout_from_shape(shape, counts, name)) == "channels_last":
        pixels = pixels.permute(2, 0, 1)
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape} and no pixels; remove it.")
    is_any_count_valid = num_channels is None and layout is not None
    if pixels.shape[0] not in counts and not is_any_count_valid:
        expected = (
            "1 (gray), 3 (RGB) or 4 (RGBA). For others, set image_mean and image_std to as many "
            "numbers"
            if num_channels == 3
            else "1, 3 or 4. For others, pass input_data_format"
            if num_channels is None
            else f"{num_channels}, the length of image_mean and image_std"
        )
        raise ValueError(
            f"{name} has shape {shape} with {pixels.shape[0]} channels; expected {expected}."
        )
    return pixels


def _layout_from_shape(shape: tuple[int, ...], counts: tuple[int, ...], name: str) -> str:
    is_first, is_last = shape[0] in counts, shape[2] in counts
    if is_first and is_last:
        raise ValueError(
            f"{name} has shape {shape}, where the first or the last dimension could be the "
            "channels; pass input_data_format='channels_first' or 'channels_last'."
        )
    return "channels_first" if is_first else "channels_last"
