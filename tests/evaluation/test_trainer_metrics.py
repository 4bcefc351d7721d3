"""COCO metrics in transformers' Trainer, and distributed evaluation."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import tv_tensors
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_detr import (
    DetectionCollator,
    evaluate,
    keep_detections,
    make_compute_metrics,
    make_evaluation_transform,
    read_coco,
)
from hf_detr.data.dataset import DetectionDataset

from ..processes import run_processes
from ..tiny import tiny_detector
from .test_evaluate import SIZE, processor_of, write_data, write_detectable_data


def trainer_of(
    folder: Path, model: nn.Module, dataset: DetectionDataset, **options: Any
) -> Trainer:
    """Make a Trainer with batches of one image, because padding changes predictions."""
    processor = processor_of()
    dataset.set_transform(make_evaluation_transform(**SIZE))
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_eval_batch_size=1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **options,
    )
    return Trainer(
        model,
        arguments,
        data_collator=DetectionCollator(processor),
        eval_dataset=dataset,
        compute_metrics=make_compute_metrics(processor, dataset.ground_truth(), per_class=True),
        preprocess_logits_for_metrics=keep_detections,
    )


@pytest.mark.parametrize("concatenated", [False, True])
def test_trainer_gets_the_same_metrics(tmp_path: Path, concatenated: bool) -> None:
    """Predictions are compared with the ground truth of their image."""
    model = tiny_detector()
    dataset, _ = write_detectable_data(tmp_path, model, processor_of())
    expected = evaluate(model, processor_of(), dataset, progress=False)
    trainer = trainer_of(tmp_path, model, dataset, eval_do_concat_batches=concatenated)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    for name in set(expected) - {"per_class"}:
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6), name
    for name, one in expected["per_class"].items():
        assert metrics[f"eval_AP_{name}"] == pytest.approx(one["AP"], abs=1e-6)


def test_class_named_as_a_metric() -> None:
    """A class "small" doesn't replace the AP of small objects."""
    truth = {
        "images": [{"id": 1, "height": 300, "width": 300}],
        "categories": [{"id": 0, "name": "small"}, {"id": 1, "name": "red"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 0, "bbox": [0, 0, 200, 200], "area": 40000},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [250, 250, 20, 20], "area": 400},
        ],
    }
    logits = torch.tensor([[[9.0, 0.0, 0.0]]])  # small, red, no object
    boxes = torch.tensor([[[1 / 3, 1 / 3, 2 / 3, 2 / 3]]])
    parts = logits, boxes, torch.tensor([1]), torch.tensor([[300, 300]])
    compute = make_compute_metrics(processor_of(), truth, per_class=True)
    metrics = compute(EvalPrediction(tuple(part.numpy() for part in parts), None))
    assert (metrics["AP_small"], metrics["AP_large"]) == pytest.approx((0, 1))
    assert (metrics["AP_class_small"], metrics["AP_red"]) == pytest.approx((1, 0))


def test_trainer_without_keep_detections_raises(tmp_path: Path) -> None:
    """The error explains how to add the image ids."""
    model, dataset = tiny_detector(), write_data(tmp_path)
    trainer = trainer_of(tmp_path, model, dataset, eval_do_concat_batches=False)
    trainer.preprocess_logits_for_metrics = None
    with pytest.raises(ValueError, match="preprocess_logits_for_metrics=keep_detections"):
        trainer.evaluate()


def test_labels_keep_only_entries_of_equal_shape() -> None:
    """Labels of different shapes can't be gathered from several processes."""
    labels = [
        {
            "image_id": torch.tensor([i]),
            "orig_size": torch.tensor([4, 5]),
            "boxes": tv_tensors.BoundingBoxes(torch.rand(i, 4), format="XYXY", canvas_size=(4, 5)),
        }
        for i in range(2)
    ]
    outputs = ({"loss_ce": torch.ones(())}, torch.rand(2, 3, 4), torch.rand(2, 3, 4), torch.ones(9))
    kept = keep_detections(outputs, labels)
    assert [tuple(part.shape) for part in kept] == [(2, 3, 4), (2, 3, 4), (2,), (2, 2)]
    assert kept[0] is outputs[1] and kept[2].tolist() == [0, 1]
    assert all(set(label) == {"image_id", "orig_size"} for label in labels)


def evaluate_in_one_of_two(rank: int, folder: str, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo")
    path, model = Path(folder), tiny_detector()
    dataset = read_coco(path / "annotations.json", path / "images")
    results = {"ours": evaluate(model, processor_of(), dataset, 3, progress=False)}
    trainer = trainer_of(path, model, dataset, eval_do_concat_batches=False, ddp_backend="gloo")
    results["trainer"] = trainer.evaluate()
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """All processes get the result of one process, from `evaluate` and from the Trainer."""
    model = tiny_detector()
    dataset, _ = write_detectable_data(tmp_path, model, processor_of())
    expected = evaluate(model, processor_of(), dataset, progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run_processes(evaluate_in_one_of_two, str(tmp_path), port)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for name in set(expected) - {"per_class"}:
            assert results["ours"][name] == pytest.approx(expected[name], abs=1e-6), name
            assert results["trainer"][f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6)
