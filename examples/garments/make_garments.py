"""Make a reproducible detection data set: garments of Fashion-MNIST on photographs.

    sudo apt-get install dataset-fashion-mnist      # 31 MB; or: --source hub
    pip install -e '.[train,garments]'
    python examples/garments/make_garments.py --output data/garments

Garments are pasted at random positions, sizes and angles. Boxes and masks are those of visible
pixels. Training and test images use the training and test garments of Fashion-MNIST and different
photographs. The same seed gives the same files, byte for byte with the same versions of NumPy,
SciPy and Pillow.

For train and test, the script writes `images/*.jpg` and `annotations.json` (COCO instances), and
with --panoptic `panoptic/*.png` and `panoptic.json` (COCO panoptic with the photograph as
"background").
"""

import argparse
import gzip
import json
import math
import struct
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from hotcoco import mask as coco_masks
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HUB_NAME = "zalando-datasets/fashion_mnist"
NAMES = (
    *("t-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
BACKGROUND_ID = len(NAMES) + 1  # in panoptic annotations; garments start from 1
IDX_PREFIX = {"train": "train", "test": "t10k"}
SPLITS = tuple(IDX_PREFIX)
# The splits have different photographs.
PHOTOGRAPHS = {
    "train": ("astronaut", "brick", "camera", "coins", "grass", "motorcycle", "rocket", "china"),
    "test": ("chelsea", "coffee", "gravel", "flower"),
}

MAX_GARMENTS = 6  # per image
LENGTHS = (0.15, 0.6)  # longer side of a garment, relative to the image
MAX_DEGREES = 30
MIN_VISIBLE = 0.5  # visible fraction of a garment
TRIES = 20  # attempts to place a garment, before it is skipped
MIN_TINT = 0.35  # minimum factor of a color channel
SPECK = 16  # separate components up to this brightness are noise
MAX_FILLED_HOLE = 10  # in pixels; larger holes are openings, such as the handle of a bag

Material = tuple[np.ndarray, np.ndarray, list[Image.Image]]  # (n, 28, 28), labels, photographs
Scene = tuple[Image.Image, list[tuple[int, np.ndarray]]]  # image; labels and masks (side, side)


# ---------------------------------------------------------------- sources


def read_idx(path: Path, num_dimensions: int) -> np.ndarray:
    """Read an array of uint8 in MNIST's format, optionally compressed."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * num_dimensions
    expected = struct.pack(">HBB", 0, 0x08, num_dimensions)
    if data[:4] != expected or len(data) < start:
        raise ValueError(
            f"{path} starts with {data[:4].hex()}; an idx file with {num_dimensions} dimensions "
            f"starts with {expected.hex()}. Download it again."
        )
    shape = struct.unpack(f">{num_dimensions}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} has {len(data) - start} values, expected {shape}. The file is incomplete or "
            "corrupted; download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_idx_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, 28, 28) and labels (n,) from a folder with Fashion-MNIST's idx files."""
    arrays = []
    for name, num_dimensions in (("images-idx3-ubyte", 3), ("labels-idx1-ubyte", 1)):
        name = f"{IDX_PREFIX[split]}-{name}"
        found = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
        if not found:
            raise ValueError(
                f"{folder} has no {name}.gz. Install the package dataset-fashion-mnist of Debian "
                "or Ubuntu, or use --source with a folder of the four files of "
                "https://github.com/zalandoresearch/fashion-mnist, or --source hub."
            )
        arrays.append(read_idx(found[0], num_dimensions))
    return arrays[0], arrays[1]


def read_hub_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images (n, 28, 28) and labels (n,) from the Hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("--source hub requires datasets: pip install datasets") from None
    dataset = load_dataset(HUB_NAME, split=split)
    images = np.stack([np.asarray(image) for image in tqdm(dataset["image"], f"read {split}")])
    return images, np.asarray(dataset["label"], dtype=np.uint8)


def read_split(source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read and check images (n, 28, 28) and labels (n,)."""
    if source == "hub":
        images, labels = read_hub_split(split)
    else:
        images, labels = read_idx_split(Path(source), split)
    if images.shape != (len(labels), 28, 28) or not len(labels):
        raise ValueError(
            f"The {split} split has images {images.shape} and {len(labels)} labels; expected one "
            "label for every image of 28 x 28."
        )
    if labels.max() >= len(NAMES):
        raise ValueError(f"The {split} split has label {labels.max()}; expected 0 to 9.")
    return images, labels


def read_photographs(split: str) -> list[Image.Image]:
    """Read the photographs for the split's backgrounds."""
    try:
        import skimage.data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ValueError(f"{error}: pip install scikit-image scikit-learn") from None
    photographs = []
    for name in PHOTOGRAPHS[split]:
        if name in ("china", "flower"):
            array = load_sample_image(f"{name}.jpg")
        elif name == "motorcycle":
            array = skimage.data.stereo_motorcycle()[0]
        else:
            array = getattr(skimage.data, name)()
        photographs.append(Image.fromarray(array).convert("RGB"))
    return photographs


# ---------------------------------------------------------------- one image


def cut_out(pixels: np.ndarray) -> Image.Image:
    """Cut a garment (28, 28) out of the black background: an image of mode LA.

    The alpha of a pixel on the outline is its brightness relative to the brightest neighbour.
    """
    covered = fill_small_holes(remove_specks(pixels))
    outline = covered & ~ndimage.binary_erosion(covered)
    brightest = ndimage.maximum_filter(pixels, size=3)
    coverage = np.where(outline, pixels / brightest.clip(1), covered)
    grey = np.where(outline, brightest, pixels)
    layers = np.stack([grey, (255 * coverage).round()], axis=-1).astype(np.uint8)
    image = Image.fromarray(layers, "LA")
    # A transparent border of one pixel gives a smooth outline when the image is enlarged.
    left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, 1, 1)
    return image.crop((left - 1, top - 1, right + 1, bottom + 1))


def remove_specks(pixels: np.ndarray) -> np.ndarray:
    """Mask (28, 28) of the garment without separate dots of noise."""
    parts, num_parts = ndimage.label(pixels > 0)
    brightest = ndimage.maximum(pixels, parts, range(1, num_parts + 1))
    return np.isin(parts, 1 + np.flatnonzero(np.asarray(brightest) > SPECK))


def fill_small_holes(covered: np.ndarray) -> np.ndarray:
    """Fill small holes of a mask (28, 28), which are black parts of the garment."""
    holes, num_holes = ndimage.label(np.pad(~covered, 1, constant_values=True))
    sizes = np.bincount(holes.ravel())
    small = np.flatnonzero(sizes <= MAX_FILLED_HOLE)
    return covered | (np.isin(holes, small[small > 0])[1:-1, 1:-1])


def cut_background(
    photographs: list[Image.Image], side: int, rng: np.random.Generator
) -> Image.Image:
    """Crop a random square of a random photograph, flipped with probability 0.5."""
    photograph = photographs[rng.integers(len(photographs))]
    width, height = photograph.size
    size = int(rng.integers(min(side, width, height), min(width, height) + 1))
    left, top = (int(rng.integers(length - size + 1)) for length in (width, height))
    square = photograph.resize((side, side), box=(left, top, left + size, top + size))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def resize_and_rotate(garment: Image.Image, length: float, degrees: float) -> Image.Image:
    """Resize a garment (mode LA) to a longer side of `length` pixels and rotate it."""
    zoom = length / max(garment.size)
    size = max(1, round(zoom * garment.width)), max(1, round(zoom * garment.height))
    large = garment.resize(size, Image.Resampling.BICUBIC)
    turned = large.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    grey, coverage = turned.split()
    # The outline is blurred over `zoom` pixels; sharpen it to one or two.
    gain = max(1.0, zoom / 1.5)
    coverage = coverage.point([round((value - 127.5) * gain + 127.5) for value in range(256)])
    return Image.merge("LA", (grey, coverage))


def paint(
    canvas: Image.Image, garment: Image.Image, left_top: tuple[int, int], tint: np.ndarray
) -> None:
    """Paste a garment with its grey values multiplied by a color (3,) in [0, 1]."""
    grey, coverage = garment.split()
    channels = [grey.point([round(factor * value) for value in range(256)]) for factor in tint]
    canvas.paste(Image.merge("RGB", channels), left_top, coverage)


def draw_garment(
    source: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Cut out a garment with random size and angle; return image and mask."""
    length = side * rng.uniform(*LENGTHS)
    degrees = rng.uniform(-MAX_DEGREES, MAX_DEGREES)
    garment = resize_and_rotate(cut_out(source), length, degrees)
    return garment, np.asarray(garment.getchannel("A")) >= 128


def cover(
    owner: np.ndarray, mask: np.ndarray, left_top: tuple[int, int], number: int
) -> np.ndarray:
    """Return a copy of `owner` (side, side) with `number` in the mask's pixels."""
    covered = owner.copy()
    left, top = left_top
    covered[top : top + len(mask), left : left + mask.shape[1]][mask] = number
    return covered


def make_scene(
    sources: np.ndarray,
    labels: np.ndarray,
    photographs: list[Image.Image],
    side: int,
    rng: np.random.Generator,
) -> Scene:
    """Paste some of `sources` (n, 28, 28) with `labels` (n,) on a photograph."""
    canvas = cut_background(photographs, side, rng)
    owner = np.full((side, side), -1)  # index of the topmost garment per pixel
    chosen, sizes = [], []  # labels, and numbers of pixels without occlusion
    for _ in range(rng.integers(1, MAX_GARMENTS + 1)):
        index = rng.integers(len(sources))
        garment, mask = draw_garment(sources[index], side, rng)
        tint = rng.uniform(MIN_TINT, 1, 3)
        for _ in range(TRIES if mask.any() else 0):
            place = tuple(int(rng.integers(side - length + 1)) for length in garment.size)
            changed = cover(owner, mask, place, len(chosen))
            visible = np.bincount(changed[changed >= 0], minlength=len(chosen) + 1)
            if (visible >= MIN_VISIBLE * np.array([*sizes, mask.sum()])).all():
                paint(canvas, garment, place, tint)
                owner = changed
                chosen.append(int(labels[index]))
                sizes.append(mask.sum())
                break
    return canvas, [(label, owner == number) for number, label in enumerate(chosen)]


def scenes_of(split: str, material: Material, count: int, side: int, seed: int) -> Iterator[Scene]:
    """Make the scenes of a split, each with its own random generator."""
    for number in tqdm(range(count), f"make {split}"):
        rng = np.random.default_rng((seed, SPLITS.index(split), number))
        yield make_scene(*material, side, rng)


# ---------------------------------------------------------------- COCO's files


def box_of(mask: np.ndarray) -> list[int]:
    """Box [x, y, width, height] of a mask (H, W), in pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]


def describe(label: int, mask: np.ndarray) -> dict:
    """Fields that instances and panoptic segments have in common."""
    return {"category_id": label + 1, "bbox": box_of(mask), "area": int(mask.sum()), "iscrowd": 0}


def encode(mask: np.ndarray) -> dict:
    """Encode a mask as COCO's compressed RLE."""
    rle = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {**rle, "counts": rle["counts"].decode()}


def save_panoptic(objects: list[tuple[int, np.ndarray]], side: int, path: Path) -> list[dict]:
    """Write the segmentation map with segment ids as red values; return segments."""
    free = ~np.any([np.zeros((side, side), bool), *(mask for _, mask in objects)], axis=0)
    parts = [(BACKGROUND_ID - 1, free), *objects] if free.any() else objects
    colors = np.zeros((side, side, 3), np.uint8)
    for number, (_, mask) in enumerate(parts, start=1):
        colors[mask, 0] = number
    Image.fromarray(colors).save(path)
    return [{"id": number, **describe(*part)} for number, part in enumerate(parts, start=1)]


def make_split(folder: Path, scenes: Iterable[Scene], side: int, panoptic: bool) -> None:
    """Write the images and annotations of a split."""
    (folder / "images").mkdir(parents=True)
    if panoptic:
        (folder / "panoptic").mkdir()
    images, annotations, maps = [], [], []
    for index, (image, objects) in enumerate(scenes):
        name = f"{index:06d}"
        image.save(folder / "images" / f"{name}.jpg", quality=92)
        images.append({"id": index, "file_name": f"{name}.jpg", "width": side, "height": side})
        for label, mask in objects:
            one = {"id": len(annotations) + 1, "image_id": index, **describe(label, mask)}
            annotations.append({**one, "segmentation": encode(mask)})
        if panoptic:
            segments = save_panoptic(objects, side, folder / "panoptic" / f"{name}.png")
            maps.append({"image_id": index, "file_name": f"{name}.png", "segments_info": segments})
    things = [{"id": index, "name": name} for index, name in enumerate(NAMES, start=1)]
    write(folder / "annotations.json", images, annotations, things)
    if panoptic:
        stuff = {"id": BACKGROUND_ID, "name": "background", "isthing": 0}
        kinds = [*({**thing, "isthing": 1} for thing in things), stuff]
        write(folder / "panoptic.json", images, maps, kinds)


def write(path: Path, images: list[dict], annotations: list[dict], categories: list[dict]) -> None:
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))


def main(options: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("data/garments"))
    parser.add_argument(
        "--source", default=str(DEBIAN_FOLDER), help='folder with idx files, or "hub"'
    )
    parser.add_argument("--images-train", type=int, default=4000)
    parser.add_argument("--images-test", type=int, default=500)
    parser.add_argument("--side", type=int, default=160, help="image size in pixels, 128 to 256")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--panoptic", action="store_true", help="also write panoptic annotations")
    arguments = parser.parse_args(options)
    if not 128 <= arguments.side <= 256:
        parser.error(f"--side is {arguments.side}; expected 128 to 256.")
    if min(arguments.images_train, arguments.images_test, arguments.seed) < 0:
        parser.error("--images-train, --images-test and --seed must not be negative.")
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"{arguments.output} isn't empty; use a new folder or delete this one.")
    counts = {"train": arguments.images_train, "test": arguments.images_test}
    side, panoptic = arguments.side, arguments.panoptic
    try:
        materials = {
            split: (*read_split(arguments.source, split), read_photographs(split))
            for split in SPLITS
        }
    except ValueError as error:
        sys.exit(str(error))
    for split, material in materials.items():
        scenes = scenes_of(split, material, counts[split], side, arguments.seed)
        make_split(arguments.output / split, scenes, side, panoptic)
    print(f"Saved {arguments.images_train} + {arguments.images_test} images in {arguments.output}")


if __name__ == "__main__":
    main()
