"""Batches for evaluation: a part of the images for each process, without the transform."""

from pathlib import Path
from typing import Any

import pytest

from hf_detr import StreamedDataset
from hf_detr.data import streamed
from hf_detr.data.tile_grid import tile_windows
from hf_detr.evaluation import image_batches
from hf_detr.evaluation.image_batches import load_images, load_rows, load_tiles

from .test_evaluate import (
    SIZES_HW,
    processor_of,
    stream_of,
    tiny_detector,
    write_data,
    write_detectable_data,
)


def ids_of(loader: Any) -> list[int]:
    """The image ids of all batches, in which all images have the same size."""
    ids = []
    for image_ids, sizes_hw, packed in loader:
        assert len(set(packed.sizes_hw)) == 1 and len(image_ids) == len(sizes_hw) == len(packed)
        ids += image_ids
    return ids


def test_processes_share_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image is in one batch of one process, and workers don't change the batches."""
    monkeypatch.setattr(streamed, "PART", 2)
    monkeypatch.setattr(image_batches, "num_processes", lambda: 2)
    processor = processor_of()
    dataset, _ = write_detectable_data(tmp_path, tiny_detector(), processor)
    dataset.set_transform(lambda *given: pytest.fail("the transform was used"))
    stream = stream_of(dataset)
    stream.set_transform(dataset.transform)
    parts: list[Any] = []

    def load(data: Any, workers: int) -> Any:
        given = data, processor, 3, workers
        is_stream = isinstance(data, StreamedDataset)
        return load_rows(*given, parts.append) if is_stream else load_images(*given)

    for data in (dataset, stream):
        found: list[int] = []
        for process in range(2):
            monkeypatch.setattr(image_batches, "process_index", lambda process=process: process)
            ids = ids_of(load(data, 0))
            assert ids and ids == ids_of(load(data, 1))
            found += ids
        assert len(found) == len(set(found)) == len(dataset)
        assert data.transform is not None
    assert sum(map(len, parts)) == 2 * len(dataset)


def test_processes_share_images_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tiles of an image are in one process, also if a process has no image."""
    monkeypatch.setattr(image_batches, "num_processes", lambda: 20)
    dataset, processor = write_data(tmp_path), processor_of()
    found = []
    for process in range(20):
        monkeypatch.setattr(image_batches, "process_index", lambda process=process: process)
        loader, places = load_tiles(dataset, processor, 3, 0, 48, 0.2)
        tiles = ids_of(loader)
        assert sorted(tiles) == list(range(len(places)))
        found.append([(image_id, number) for image_id, number, _ in places])
    joined = [place for places in found for place in places]
    expected = [
        (int(image_id), number)
        for image_id, size_hw in zip(dataset.table.image_ids, SIZES_HW, strict=True)
        for number in range(len(tile_windows(size_hw, 48, 0.2)))
    ]
    assert joined == expected and len(joined) > len(dataset)
