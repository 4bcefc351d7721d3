"""Evaluation: equality with inference of single images, independent of the batch size."""

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from hf_detr import (
    DetrForSegmentation,
    DetrImageProcessor,
    StreamedDataset,
    evaluate,
    evaluate_panoptic,
    make_training_transform,
    read_coco,
    read_coco_panoptic,
)
from hf_detr.data import streamed
from hf_detr.data.check import check_dataset
from hf_detr.data.dataset import DetectionDataset
from hf_detr.evaluation.evaluate import detect
from hf_detr.image_processing.coco_masks import rle_from_mask

from ..inference.test_tile_results import PROCESSOR, ExactDetector, picture, some_rectangles
from ..processes import run_processes
from ..some_data import write_image
from ..tiny import class_of, tiny_config, tiny_detector

SIZES_HW = (
    (40, 60),
    (60, 40),
    (40, 60),
    (50, 50),
    (40, 60),
    (60, 40),
    (40, 60),
    (33, 80),
    (80, 33),
)
SIZE = {"shortest_edge": 64, "longest_edge": 96}
CATEGORIES = [{"id": i, "name": f"kind {i}"} for i in range(5)]
Detections = dict[int, dict[str, Tensor]]


def processor_of(variant: str = "detr") -> DetrImageProcessor:
    return class_of(variant, "ImageProcessor")(size=SIZE)


def write_data(folder: Path, annotations: Iterable[dict[str, Any]] = ()) -> DetectionDataset:
    """Write a data set with images of several sizes and ids with gaps."""
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
    """Run inference on single images, the reference of evaluation."""
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


def write_detectable_data(
    folder: Path, model: nn.Module, processor: DetrImageProcessor
) -> tuple[DetectionDataset, Detections]:
    """Write data whose objects are slightly shifted detections of the model."""
    found = detect_one_by_one(model, processor, write_data(folder))
    annotations = []
    for image_id, result in found.items():
        height, width = SIZES_HW[(image_id - 2) // 5]
        for index in result["scores"].argsort(descending=True)[: 1 + image_id % 3].tolist():
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


def test_result_does_not_depend_on_batch_size(variant: str, tmp_path: Path) -> None:
    """Detections equal those of single images, and AP is the same at 1, 3 and 8."""
    model, processor = tiny_detector(variant), processor_of(variant)
    dataset, expected = write_detectable_data(tmp_path, model, processor)
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


def stream_of(dataset: DetectionDataset) -> StreamedDataset:
    """The rows of a data set in two shards, without ids and sizes."""
    truth = dataset.ground_truth()

    def rows(shards: list[list[int]]) -> Iterator[dict[str, Any]]:
        for image in (truth["images"][number] for shard in shards for number in shard):
            own = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
            keys = {"bbox": "bbox", "category_id": "category", "area": "area"}
            objects = {name: [one[key] for one in own] for key, name in keys.items()}
            yield {"image": Path(image["file_name"]).read_bytes(), "objects": objects}

    shards = {"shards": [[0, 1, 2, 3, 4, 5], [6, 7, 8]]}
    names = {kind["id"]: kind["name"] for kind in CATEGORIES}
    return StreamedDataset(
        IterableDataset.from_generator(rows, gen_kwargs=shards), 9, "coco_xywh", names
    )


def test_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are read and evaluated a few at a time have the same metrics."""
    monkeypatch.setattr(streamed, "PART", 4)
    model, processor = tiny_detector(), processor_of()
    dataset, _ = write_detectable_data(tmp_path, model, processor)
    expected = evaluate(model, processor, dataset, progress=False)
    for workers in (0, 1):
        found = evaluate(model, processor, stream_of(dataset), 3, workers, progress=False)
        assert found.pop("per_class").keys() == expected["per_class"].keys()
        assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", None)  # raises before it is called
        with pytest.raises(ValueError, match="max_detections is 5"):
            evaluate(model, processor, stream_of(dataset), max_detections=5)
    with pytest.raises(ValueError, match=r"A stream is evaluated with \('bbox',\) only"):
        evaluate(model, processor, stream_of(dataset), iou_types=("bbox", "segm"))
    with pytest.raises(ValueError, match="without masks, lvis, tiles"):
        evaluate(model, processor, stream_of(dataset), tiles=64)


def test_workers_start_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All images of a data set, and all parts of a stream, are loaded by the same workers."""
    monkeypatch.setattr(streamed, "PART", 2)
    model, processor = tiny_detector(), processor_of()
    dataset, _ = write_detectable_data(tmp_path, model, processor)
    iterate, started = DataLoader.__iter__, []

    def noted(loader: DataLoader) -> Any:
        started.append(loader)
        return iterate(loader)

    monkeypatch.setattr(DataLoader, "__iter__", noted)
    for data, number in ((dataset, 1), (stream_of(dataset), 2)):
        evaluate(model, processor, data, progress=False)
        assert len(started) == number


def test_progress_of_streams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """There is one bar, of all images, and none without `progress`."""
    monkeypatch.setattr(streamed, "PART", 4)
    model, processor = tiny_detector(), processor_of()
    stream = stream_of(write_detectable_data(tmp_path, model, processor)[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    evaluate(model, processor, stream, progress=False)
    assert not capsys.readouterr().err
    evaluate(model, processor, stream)
    bars = capsys.readouterr().err
    assert bars.count("evaluate: 0") == 1 and "9image" in bars


def evaluate_share(rank: int, folder: str) -> None:
    """Run one of two processes, which have different numbers of rows."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    model, processor = tiny_detector(), processor_of()
    images = Path(folder)
    dataset = read_coco(images / "annotations.json", images / "images")
    metrics = evaluate(model, processor, stream_of(dataset), progress=False)
    torch.save(metrics["AP"], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_share_a_stream(tmp_path: Path) -> None:
    """Each reads its own rows, and both get the result of all."""
    model, processor = tiny_detector(), processor_of()
    dataset, _ = write_detectable_data(tmp_path, model, processor)
    expected = evaluate(model, processor, dataset, progress=False)["AP"]
    run_processes(evaluate_share, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found == pytest.approx([expected] * 2, abs=1e-6)


def tiny_segmenter() -> DetrForSegmentation:
    torch.manual_seed(0)
    config = tiny_config("detr", d_model=128, encoder_attention_heads=8, num_queries=12)
    return DetrForSegmentation(config).eval()


def test_masks_of_a_segmentation_model(tmp_path: Path) -> None:
    """Masks equal those of single images, resized in two steps as in the official code."""
    model, processor = tiny_segmenter(), processor_of()
    dataset, expected = write_detectable_data(tmp_path, model, processor)
    found = gathered(model, processor, dataset, 3, masks=True)
    for image_id, result in found.items():
        differing = (result["masks"] != expected[image_id]["masks"]).float().mean()
        assert differing < 1e-3  # pixels on the threshold
    metrics = evaluate(model, processor, dataset, 3, iou_types=("bbox", "segm"), progress=False)
    assert 0 < metrics["segm_AP"] < 1 and 0 < metrics["AP"] < 1


@pytest.mark.parametrize("queries", [[3], range(12)], ids=["one", "all"])
def test_masks_stay_with_their_detections_if_others_are_nan(queries: Any, tmp_path: Path) -> None:
    """Queries whose boxes are NaN are left out together with their masks."""
    model, dataset = tiny_segmenter(), write_data(tmp_path)
    expected = gathered(model, processor_of(), dataset, 3, masks=True)

    def put_nan(module: Any, inputs: Any, outputs: Any) -> None:
        outputs.pred_boxes[:, list(queries)] = math.nan

    model.register_forward_hook(put_nan)
    with pytest.warns(UserWarning, match="outputs have NaN or infinite values"):
        found = gathered(model, processor_of(), dataset, 3, masks=True)
    for image_id, result in found.items():
        boxes = expected[image_id]["boxes"]
        same = torch.tensor([bool((result["boxes"] == box).all(1).any()) for box in boxes])
        assert torch.equal(result["boxes"], boxes[same])
        assert torch.equal(result["masks"], expected[image_id]["masks"][same])
    assert sum(map(len, (result["masks"] for result in found.values()))) < sum(
        map(len, (result["masks"] for result in expected.values()))
    )


def test_masks_on_a_fixed_canvas(tmp_path: Path) -> None:
    """With `pad_size`, the padding is removed before masks are resized."""
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


def test_model_and_data_set_are_not_modified(tmp_path: Path) -> None:
    """Mode and transform are restored after evaluation and don't affect it."""
    model, processor = tiny_detector(dropout=0.5), processor_of()
    dataset = write_data(tmp_path)
    expected = gathered(model, processor, dataset)
    transform = make_training_transform((64,))
    dataset.set_transform(transform)
    model.train()
    model.model.backbone.eval()
    found = gathered(model, processor, dataset, num_workers=1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.training and not model.model.backbone.training
    assert dataset.transform is transform


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    """Labels of a model with other numbers are mapped to those of the data set."""
    model, processor = tiny_detector(), processor_of()
    dataset = write_data(tmp_path)
    expected = gathered(model, processor, dataset)
    model.config.id2label = {0: "N/A", 1: "kind 3", 2: "N/A", 3: "kind 1", 4: "other"}
    with pytest.warns(UserWarning, match=r"doesn't have 3 of the data set's 5 classes, .*'kind 0'"):
        found = gathered(model, processor, dataset)
    for image_id, result in expected.items():
        kept = (result["labels"] == 1) | (result["labels"] == 3)
        assert torch.equal(found[image_id]["scores"], result["scores"][kept])
        assert torch.equal(found[image_id]["labels"], 4 - result["labels"][kept])


def make_predictions_differ(model: DetrForSegmentation) -> None:
    """Change the class head of a random model so that queries differ, without "no object"."""
    classifier = model.detector.class_labels_classifier
    with torch.no_grad():
        states = model((torch.rand(1, 3, 64, 96) - 0.45) / 0.225).last_hidden_state[0]
        classifier.weight *= 10000
        classifier.bias.copy_(-classifier.weight @ states.mean(0))
        classifier.bias[-1] = -1e4


def write_panoptic(folder: Path, model: nn.Module, processor: DetrImageProcessor) -> Path:
    """Write panoptic data of the model's predictions; the left half of odd images is void."""
    dataset, annotations = write_data(folder), []
    (folder / "segments").mkdir()
    for number, (image, target) in enumerate(dataset):
        with torch.no_grad():
            outputs = model(**processor(image.as_subclass(Tensor), return_tensors="pt"))
        (found,) = processor.post_process_panoptic_merge(
            outputs, 0.0, {0, 1}, target_sizes=[SIZES_HW[number]]
        )
        segmentation = found["segmentation"].clamp(min=0).to(torch.uint8)
        if number % 2:
            segmentation[:, : SIZES_HW[number][1] // 2] = 0
        pixels = torch.stack([segmentation, *2 * [torch.zeros_like(segmentation)]], dim=-1)
        PIL.Image.fromarray(pixels.numpy()).save(folder / "segments" / f"{number}.png")
        classes = {info["id"]: info["label_id"] for info in found["segments_info"]}
        infos = [
            {"id": int(i), "category_id": classes[int(i)], "iscrowd": 0}
            for i in segmentation.unique()
            if i
        ]
        entry = {"image_id": int(target["image_id"]), "file_name": f"{number}.png"}
        annotations.append({**entry, "segments_info": infos})
    content = json.loads((folder / "annotations.json").read_text())
    categories = [{**category, "isthing": int(category["id"] > 1)} for category in CATEGORIES]
    content |= {"annotations": annotations, "categories": categories}
    (folder / "panoptic.json").write_text(json.dumps(content))
    return folder / "panoptic.json"


def test_panoptic_quality(tmp_path: Path) -> None:
    """Predictions are compared with the targets of their image and class."""
    model, processor = tiny_segmenter(), processor_of()
    make_predictions_differ(model)
    file = write_panoptic(tmp_path, model, processor)
    dataset = read_coco_panoptic(file, tmp_path / "images", tmp_path / "segments")
    results = [
        evaluate_panoptic(model, processor, dataset, batch_size, threshold=0.0, progress=False)
        for batch_size in (1, 3)
    ]
    assert results[0]["pq"] > 0.9
    assert results[0]["num_classes_things"] and results[0]["num_classes_stuff"]
    # Masks of a random model are nearly equal, so rounding changes some pixels.
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff"):
        assert results[1][name] == pytest.approx(results[0][name], abs=0.1)

    # Objects of classes that the model doesn't have are missed.
    names = {category["id"]: category["name"] for category in CATEGORIES}
    seen = {label for label, one in results[0]["per_class"].items() if one["tp"]}
    model.config.id2label = {i: "other" if i in seen else names[i] for i in names}
    with pytest.warns(UserWarning, match="The model doesn't have"):
        result = evaluate_panoptic(model, processor, dataset, 3, threshold=0.0, progress=False)
    assert result["pq"] == 0.0 and all(one["fp"] == 0 for one in result["per_class"].values())


def test_panoptic_maps_and_records_that_differ(tmp_path: Path) -> None:
    """Unlisted pixels are void, and records without pixels are ignored."""
    model, processor = tiny_segmenter(), processor_of()
    make_predictions_differ(model)
    file = write_panoptic(tmp_path, model, processor)
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    del first["segments_info"][0]
    box = [1, 1, 5, 5]
    first["segments_info"].append({"id": 250, "category_id": 2, "iscrowd": 0, "bbox": box})
    file.write_text(json.dumps(content))
    dataset = read_coco_panoptic(file, tmp_path / "images", tmp_path / "segments", masks=True)
    result = evaluate_panoptic(model, processor, dataset, threshold=0.0, progress=False)
    assert result["pq"] > 0.9
    kinds = {problem.kind: problem for problem in check_dataset(dataset, use_cache=False).problems}
    for kind in ("empty mask", "unlisted segments"):
        assert kinds[kind].image == 0 and not kinds[kind].is_fatal


def test_nan_logits_warn(variant: str, tmp_path: Path) -> None:
    """The reason of an AP of 0 is reported."""
    model = tiny_detector(variant)
    for parameter in model.parameters():
        parameter.data.fill_(math.nan)
    with pytest.warns(UserWarning, match="outputs have NaN or infinite values"):
        evaluate(model, processor_of(variant), write_data(tmp_path), progress=False)


def test_part_of_a_data_set(tmp_path: Path) -> None:
    """torch's Subset is evaluated on its images only."""
    box = {"category_id": 0, "bbox": [5, 5, 20, 20], "area": 400}
    dataset = write_data(tmp_path, [{**box, "image_id": image_id} for image_id in (2, 7, 7)])
    model, processor = tiny_detector(num_labels=5), processor_of()
    metrics = evaluate(model, processor, Subset(dataset, [1, 4]))
    assert metrics == evaluate(model, processor, dataset.subset([1, 4]))
    assert metrics["per_class"]["kind 0"]["num_objects"] == 2


@pytest.mark.parametrize("variant", ["detr", "deformable_detr"])
def test_more_detections_than_in_coco(variant: str, tmp_path: Path) -> None:
    """`max_detections` also reaches the post-processing, which is limited to 100 by default."""
    dataset = write_data(tmp_path).first(1)
    model, processor = tiny_detector(variant, num_queries=40, num_labels=5), processor_of(variant)
    counts = [
        len(found["scores"])
        for number in (100, 150)
        for _, (found,) in detect(model, processor, dataset, max_detections=number)
    ]
    assert counts == ([40, 40] if variant == "detr" else [100, 150])
    assert "AR_150" in evaluate(model, processor, dataset, max_detections=150)


def test_lvis(tmp_path: Path) -> None:
    """With the fields of an LVIS file, AP follows LVIS' rules."""
    box = {"category_id": 1, "bbox": [5, 5, 20, 20], "area": 400, "image_id": 7}
    dataset = write_data(tmp_path, [box]).first(2)
    fields = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    file = {
        "images": [{"id": int(image_id), **fields} for image_id in dataset.table.image_ids],
        "categories": [{**category, "frequency": "c"} for category in CATEGORIES],
    }
    given = tiny_detector(num_labels=5), processor_of(), dataset
    metrics = evaluate(*given, max_detections=300, lvis=file)
    assert metrics["AP_rare"] == -1 and metrics["AP_common"] == metrics["AP"] >= 0
    assert "AR_300" in metrics and "AR_10" not in metrics


def test_queries_are_ranked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks belong to the queries that the post-processing kept, without ranking them again."""
    ranked = []
    classification = DetrImageProcessor.classification
    rank = classification.detections

    def count(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ranked.append(len(logits))
        return rank(logits)

    monkeypatch.setattr(classification, "detections", staticmethod(count))
    gathered(tiny_segmenter(), processor_of(), write_data(tmp_path).first(2), 1, masks=True)
    assert ranked == [1, 1]


def test_panoptic_quality_requires_panoptic_data(tmp_path: Path) -> None:
    """Data without maps raise."""
    with pytest.raises(ValueError, match="use read_coco_panoptic"):
        evaluate_panoptic(tiny_segmenter(), processor_of(), write_data(tmp_path))


def test_tiles_of_a_model_that_finds_everything(tmp_path: Path) -> None:
    """AP of boxes and masks and panoptic quality are 1, and tiles aren't larger than they say."""
    (tmp_path / "segments").mkdir()
    images, annotations, segments = [], [], []
    for number, size_hw in enumerate([(150, 170), (60, 50), (64, 200)]):
        rectangles = some_rectangles(number, size_hw, 40)[:20]
        rectangles = [rectangle for rectangle in rectangles if rectangle[4]]  # one class
        pixels = picture(size_hw, rectangles)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        ids = pixels.copy()
        ids[..., 0] += 1
        ids[..., 1:] = 0
        PIL.Image.fromarray(ids).save(tmp_path / "segments" / f"{number}.png")
        image = {"id": 3 * number, "file_name": f"{number}.png"}
        images.append({**image, "height": size_hw[0], "width": size_hw[1]})
        infos = [{"id": 1, "category_id": 0, "iscrowd": 0, "bbox": [0, 0, *size_hw[::-1]]}]
        for x0, y0, x1, y1, kind in rectangles:
            box = {"bbox": [x0, y0, x1 - x0, y1 - y0], "category_id": kind, "iscrowd": 0}
            polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
            infos.append({**box, "id": len(infos) + 1})
            annotation = {**box, "id": len(annotations) + 1, "image_id": 3 * number}
            annotation |= {"segmentation": polygon, "area": (x1 - x0) * (y1 - y0)}
            annotations.append(annotation)
        segments.append({"image_id": 3 * number, "file_name": f"{number}.png"})
        segments[-1]["segments_info"] = infos
    categories = [{"id": 0, "name": "red", "isthing": 0}, {"id": 1, "name": "green", "isthing": 1}]
    content = {"images": images, "categories": categories}
    file = tmp_path / "objects.json"
    file.write_text(json.dumps({**content, "annotations": annotations}))
    dataset, model = read_coco(file, tmp_path, masks=True), ExactDetector(with_masks=True)
    given = model, PROCESSOR, dataset, 8, 0, ("bbox", "segm")
    for tiles in (None, 64):
        model.batches.clear()
        metrics = evaluate(*given, progress=False, tiles=tiles)
        assert metrics["per_class"]["green"]["AP"] == metrics["per_class"]["green"]["segm_AP"] == 1
        largest = max(max(batch[2:]) for batch in model.batches)
        assert largest == (tiles or 200)
    with pytest.raises(ValueError, match="tiles is 8"):
        evaluate(*given, tiles=8)
    file = tmp_path / "panoptic.json"
    file.write_text(json.dumps({**content, "annotations": segments}))
    dataset = read_coco_panoptic(file, tmp_path, tmp_path / "segments")
    for tiles in (None, 64):
        given = model, PROCESSOR, dataset
        quality = evaluate_panoptic(*given, threshold=0.5, progress=False, tiles=tiles)
        assert quality["pq"] == 1


def test_tiles_that_nothing_is_larger_than(tmp_path: Path) -> None:
    """Detections are those without tiles, and count up to the best ones of each class."""
    model, processor = tiny_detector(), processor_of()
    dataset = write_data(tmp_path)
    expected = gathered(model, processor, dataset, 3)
    found = gathered(model, processor, dataset, 3, tiles=96)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    cut = gathered(model, processor, dataset, 3, tiles=48, max_detections=2)
    for image_id, result in cut.items():
        if max(SIZES_HW[(image_id - 2) // 5]) > 48:
            assert result["labels"].bincount().max() <= 2
