"""Evaluation: no dependence on batch size or processes, in our loop and in the Trainer."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from transformers import Trainer, TrainingArguments

from hf_detr import (
    DetectionCollator,
    DetrForSegmentation,
    DetrImageProcessor,
    evaluate,
    keep_detections,
    make_compute_metrics,
    make_evaluation_transform,
    make_training_transform,
    read_coco,
)
from hf_detr.coco_masks import rle_from_mask
from hf_detr.detection_data import DetectionDataset
from hf_detr.evaluation import detect, label_map

from .some_data import write_image
from .tiny import class_of, tiny_config, tiny_detector

SIZES_HW = ((40, 60), (60, 40), (40, 60), (50, 50), (40, 60), (60, 40), (40, 60), (33, 80))
SIZE = {"shortest_edge": 64, "longest_edge": 96}
CATEGORIES = [{"id": i, "name": f"kind {i}"} for i in range(5)]
Detections = dict[int, dict[str, Tensor]]


def processor_of(variant: str = "detr") -> DetrImageProcessor:
    return class_of(variant, "ImageProcessor")(size=SIZE)


def write_data(folder: Path, annotations: Iterable[dict[str, Any]] = ()) -> DetectionDataset:
    """A data set of images of several sizes; its ids have gaps."""
    images = []
    for number, (height, width) in enumerate(SIZES_HW):
        write_image(folder / "images" / f"{number}.png", height, width, seed=number)
        image = {"id": 5 * number + 2, "file_name": f"{number}.png"}
        images.append({**image, "height": height, "width": width})
    numbered = [{"iscrowd": 0, **a, "id": i} for i, a in enumerate(annotations, 1)]
    content = {"images": images, "annotations": numbered, "categories": CATEGORIES}
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    masks = any("segmentation" in annotation for annotation in numbered)
    return read_coco(file, folder / "images", masks=masks)


def detect_one_by_one(
    model: nn.Module, processor: DetrImageProcessor, dataset: DetectionDataset
) -> Detections:
    """Plain inference, image by image: what evaluation has to be about."""
    found = {}
    for image, target in dataset:
        with torch.no_grad():
            outputs = model(**processor(image.as_subclass(Tensor), return_tensors="pt"))
        sizes = [tuple(target["orig_size"].tolist())]
        (result,) = processor.post_process_object_detection(outputs, -1.0, target_sizes=sizes)
        if "pred_masks" in outputs:
            canvas = processor(image.as_subclass(Tensor))["pixel_values"][0].shape[-2:]
            masks = F.interpolate(outputs.pred_masks, canvas, mode="bilinear").sigmoid() > 0.5
            result["masks"] = F.interpolate(masks.float(), sizes[0], mode="nearest")[0] > 0.5
        found[int(target["image_id"])] = result
    return found


def write_findable_data(
    folder: Path, model: nn.Module, processor: DetrImageProcessor
) -> tuple[DetectionDataset, Detections]:
    """Data whose objects a random model finds, more or less: what it found, shifted a little."""
    found = detect_one_by_one(model, processor, write_data(folder))
    annotations = []
    for image_id, result in found.items():
        height, width = SIZES_HW[(image_id - 2) // 5]
        for index in result["scores"].argsort(descending=True)[:3].tolist():
            x0, y0, x1, y1 = result["boxes"][index].tolist()
            x0, y0 = max(x0 - index % 3, 0), max(y0 - image_id % 3, 0)
            extent = [max(min(x1, width) - x0, 1), max(min(y1, height) - y0, 1)]
            annotation = {
                "image_id": image_id,
                "category_id": int(result["labels"][index]),
                "bbox": [x0, y0, *extent],
                "area": extent[0] * extent[1],
            }
            if "masks" in result:
                mask = result["masks"][index].roll(image_id % 3, -1)
                annotation["segmentation"] = rle_from_mask(mask)
            annotations.append(annotation)
    return write_data(folder, annotations), found


def gathered(*arguments: Any, **options: Any) -> Detections:
    batches = detect(*arguments, progress=False, **options)
    return {i: result for ids, results in batches for i, result in zip(ids, results, strict=True)}


def test_batch_size_changes_nothing(variant: str, tmp_path: Path) -> None:
    """Protects published numbers: the very detections of single images, and one AP, at 1, 3, 8."""
    model, processor = tiny_detector(variant), processor_of(variant)
    dataset, expected = write_findable_data(tmp_path, model, processor)
    results = []
    for batch_size in (1, 3, 8):
        found = gathered(model, processor, dataset, batch_size)
        assert set(found) == set(expected)
        for image_id, result in found.items():
            torch.testing.assert_close(result, expected[image_id], rtol=1e-4, atol=1e-4)
        results.append(evaluate(model, processor, dataset, batch_size, progress=False))
    assert 0.1 < results[0]["AP"] < 0.99
    for result in results[1:]:
        assert result["per_class"].keys() == results[0]["per_class"].keys()
        for name in set(result) - {"per_class"}:
            assert result[name] == pytest.approx(results[0][name], abs=1e-6), name


def tiny_segmenter() -> DetrForSegmentation:
    torch.manual_seed(0)
    config = tiny_config("detr", d_model=128, encoder_attention_heads=8, num_queries=12)
    return DetrForSegmentation(config).eval()


def test_masks_of_a_segmentation_model(tmp_path: Path) -> None:
    """Protects mask AP: masks are those of single images, in the official code's two steps."""
    model, processor = tiny_segmenter(), processor_of()
    dataset, expected = write_findable_data(tmp_path, model, processor)
    found = gathered(model, processor, dataset, 3, masks=True)
    for image_id, result in found.items():
        differing = (result["masks"] != expected[image_id]["masks"]).float().mean()
        assert differing < 1e-3  # pixels on the threshold
    metrics = evaluate(model, processor, dataset, 3, iou_types=("bbox", "segm"), progress=False)
    assert 0 < metrics["segm_AP"] < 1 and 0 < metrics["AP"] < 1


def test_masks_on_a_fixed_canvas(tmp_path: Path) -> None:
    """Protects processors with `pad_size`: what lies on the padding isn't scaled into the mask."""
    model, dataset = tiny_segmenter(), write_data(tmp_path)
    processor = DetrImageProcessor(size=SIZE, pad_size={"height": 96, "width": 128})
    found = gathered(model, processor, dataset, 3, masks=True)
    image, target = dataset[1]
    inputs = processor(image.as_subclass(Tensor), return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (96, 128)
    with torch.no_grad():
        logits = model(**inputs).pred_masks
    masks = F.interpolate(logits, (96, 128), mode="bilinear")[..., :96, :64] > 0
    expected = F.interpolate(masks.float(), (60, 40), mode="nearest")[0] > 0.5
    assert (found[7]["masks"] != expected).float().mean() < 1e-3


def test_caller_finds_everything_as_it_was(tmp_path: Path) -> None:
    """Protects training loops that evaluate in between: mode and transform stay, neither counts."""
    model, processor = tiny_detector(dropout=0.5), processor_of()
    dataset = write_data(tmp_path)
    expected = gathered(model, processor, dataset)
    transform = make_training_transform((64,))
    dataset.set_transform(transform)
    model.train()
    found = gathered(model, processor, dataset)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.training and dataset.transform is transform


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Protects published checkpoints, whose labels have gaps: the data's numbers come out."""
    model, processor = tiny_detector(), processor_of()
    dataset = write_data(tmp_path)
    expected = gathered(model, processor, dataset)
    model.config.id2label = {0: "N/A", 1: "kind 3", 2: "N/A", 3: "kind 1", 4: "other"}
    with pytest.warns(UserWarning, match=r"lacks 3 of the data's 5 classes, .*'kind 0'"):
        found = gathered(model, processor, dataset)
    for image_id, result in expected.items():
        kept = (result["labels"] == 1) | (result["labels"] == 3)
        assert torch.equal(found[image_id]["scores"], result["scores"][kept])
        assert torch.equal(found[image_id]["labels"], 4 - result["labels"][kept])


def test_label_map() -> None:
    """Protects the numbering of classes: by name, by number where there are none, or refused."""
    data = {0: "cat", 1: "dog"}
    assert label_map({0: "cat", 1: "dog"}, data) == {0: 0, 1: 1}
    assert label_map({17: "cat", 18: "dog", 12: "N/A"}, data) == {17: 0, 18: 1}
    assert label_map({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, data) == {0: 0, 1: 1}
    with pytest.raises(ValueError, match=r"\['car'\] .*\['cat', 'dog'\] .*no name in common"):
        label_map({0: "car"}, data)


# ---------------------------------------------------------------- transformers' Trainer


def trainer_of(
    folder: Path, model: nn.Module, dataset: DetectionDataset, **options: Any
) -> Trainer:
    """A Trainer that evaluates image by image, as padding would change what is found."""
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
    """Protects AP inside the Trainer: predictions meet the ground truth of their own image."""
    model = tiny_detector()
    dataset, _ = write_findable_data(tmp_path, model, processor_of())
    expected = evaluate(model, processor_of(), dataset, progress=False)
    trainer = trainer_of(tmp_path, model, dataset, eval_do_concat_batches=concatenated)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0
    for name in set(expected) - {"per_class"}:
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6), name
    for name, one in expected["per_class"].items():
        assert metrics[f"eval_AP_{name}"] == pytest.approx(one["AP"], abs=1e-6)


def test_trainer_without_the_preparation_is_told(tmp_path: Path) -> None:
    """Protects from predictions of unknown images."""
    model, dataset = tiny_detector(), write_data(tmp_path)
    trainer = trainer_of(tmp_path, model, dataset, eval_do_concat_batches=False)
    trainer.preprocess_logits_for_metrics = None
    with pytest.raises(ValueError, match="preprocess_logits_for_metrics=keep_detections"):
        trainer.evaluate()


def test_labels_keep_only_what_has_one_shape() -> None:
    """Protects several processes, between which ragged labels can't be gathered."""
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
    import os

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
    """Protects evaluation on several GPUs: in every process the numbers of one, in both loops."""
    import socket

    model = tiny_detector()
    dataset, _ = write_findable_data(tmp_path, model, processor_of())
    expected = evaluate(model, processor_of(), dataset, progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(evaluate_in_one_of_two, args=(str(tmp_path), port), nprocs=2)
    for rank in range(2):
        results = torch.load(tmp_path / f"{rank}.pt")
        for name in set(expected) - {"per_class"}:
            assert results["ours"][name] == pytest.approx(expected[name], abs=1e-6), name
            assert results["trainer"][f"eval_{name}"] == pytest.approx(expected[name], abs=1e-6)
