"""Batches of images of equal size for evaluation, prepared as in inference and by workers."""

import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers.image_utils import SizeDict

from ..data.batches import PackedBatch, SizeGroupedBatches, pack_batch
from ..data.dataset import DetectionDataset, Example
from ..data.streamed import Key, StreamedDataset
from ..data.tiles import TilePlace, tile_dataset
from ..distributed import num_processes, process_index
from ..image_processing.image_processor import DetectionImageProcessor
from ..image_processing.image_settings import resized_hw

LoadedBatch = tuple[list[int], list[tuple[int, int]], PackedBatch]


def load_images(
    dataset: DetectionDataset,
    processor: DetectionImageProcessor,
    batch_size: int,
    num_workers: int,
) -> DataLoader:
    """Return a loader of this process's part of a data set, without its transform.

    Its batches are the image ids, original sizes (height, width), and images.
    """
    plain = copy.copy(dataset)
    plain.set_transform(None)
    sizes_hw = _input_sizes_hw(dataset, processor)
    batches = SizeGroupedBatches(sizes_hw, batch_size, process_index(), num_processes())
    return _loader(plain, batches, processor, num_workers)


def load_tiles(
    dataset: DetectionDataset,
    processor: DetectionImageProcessor,
    batch_size: int,
    num_workers: int,
    tiles: int | None,
    overlap: float,
) -> tuple[DataLoader, list[TilePlace] | None]:
    """Return a loader as `load_images`, but of tiles, with their index instead of an image id.

    All tiles of an image are in the same process.

    Returns:
        The loader, and the place of each tile; None without tiles.
    """
    if tiles is None:
        return load_images(dataset, processor, batch_size, num_workers), None
    part = dataset.subset(range(process_index(), len(dataset), num_processes()))
    cut, places = tile_dataset(part, tiles, overlap, with_objects=False)
    cut.set_transform(None)
    batches = SizeGroupedBatches(_input_sizes_hw(cut, processor), batch_size)
    return _loader(cut, batches, processor, num_workers), places


def load_rows(
    stream: StreamedDataset,
    processor: DetectionImageProcessor,
    batch_size: int,
    num_workers: int,
    note_part: Callable[[DetectionDataset], None],
) -> DataLoader:
    """Return a loader of this process's part of a stream, whose workers start once.

    Its batches are as those of `load_images`. This process reads the rows, workers decode them.

    Args:
        note_part: is called with the data set of the next rows before they are loaded.
    """
    plain = stream.for_workers()
    plain.set_transform(None)

    def batches() -> Iterator[list[Key]]:
        for keys, part in stream.parts(process_index(), num_processes()):
            note_part(part)
            for indices in SizeGroupedBatches(_input_sizes_hw(part, processor), batch_size):
                yield [keys[index] for index in indices]

    return _loader(_RowExamples(plain), batches(), processor, num_workers)


class _RowExamples(Dataset):
    def __init__(self, stream: StreamedDataset) -> None:
        self.stream = stream

    def __getitem__(self, key: Key) -> Example:
        return self.stream.example(key, epoch=0)


def _input_sizes_hw(
    dataset: DetectionDataset, processor: DetectionImageProcessor
) -> list[tuple[int, int]]:
    """Return the height and width of each image as the model gets it."""
    sizes_hw = [dataset.image_hw(index) for index in range(len(dataset))]
    if not processor.do_resize:
        return sizes_hw
    size = SizeDict(**dict(processor.size))
    return [resized_hw(size_hw, size) for size_hw in sizes_hw]


def _loader(
    examples: Dataset,
    batches: Iterable[list[Any]],
    processor: DetectionImageProcessor,
    num_workers: int,
) -> DataLoader:
    return DataLoader(
        examples,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=functools.partial(_collate, processor),
    )


def _collate(
    processor: DetectionImageProcessor, samples: Sequence[tuple[Tensor, dict[str, Tensor]]]
) -> LoadedBatch:
    images = [image for image, _ in samples]
    packed = pack_batch(images, [{}] * len(images), processor, processor.do_resize)
    image_ids = [int(target["image_id"]) for _, target in samples]
    return image_ids, [tuple(target["orig_size"].tolist()) for _, target in samples], packed
