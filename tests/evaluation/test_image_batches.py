"""Batches for evaluation: a part of the images for each process, without the transform."""

from pathlib import Path
from typing import Any

import pytest

from hf_detr import StreamedDataset
from hf_detr.data import streamed
from hf_detr.evaluation import image_batches
from hf_detr.evaluation.image_batches import load_images, load_rows

from .test_evaluate import processor_of, stream_of, tiny_detector, write_detectable_data


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
