"""Protects panoptic models: the official masks, losses and gradients, files, frozen detectors."""

import inspect
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

import hf_detr
from hf_detr import ConditionalDetrForSegmentation, DetrForSegmentation
from hf_detr.models.segmentation import Segmenter
from hf_detr.ops.box_ops import inverse_sigmoid

from ..image_processing.test_coco_panoptic import write_png
from ..tiny import WITH_MASKS, class_of, padded_batch, some_labels, tiny_config
from .test_parity import Case, assert_converts_back, converted, weights  # noqa: F401  (a fixture)


def tiny_segmenter(variant: str = "detr", **changes: object) -> Segmenter:
    """A model of 128 channels, the fewest that the mask head can take, in eval mode."""
    torch.manual_seed(0)
    config = tiny_config(variant, d_model=128, encoder_attention_heads=8, **changes)
    return class_of(variant, "ForSegmentation")(config).eval()


def labels_with_masks(counts: tuple[int, ...] = (2, 0)) -> list[dict[str, Tensor]]:
    """Random objects with masks that are smaller than the canvas for the second image."""
    labels = some_labels(counts)
    sizes = [(64, 96), (54, 89)]
    for target, (height, width) in zip(labels, sizes, strict=False):
        count = len(target["class_labels"])
        target["masks"] = torch.rand(count, height, width) > 0.5
    return labels


def recorded_masks(case: Case, target_set: str) -> list[Tensor]:
    """True masks of both images; the reference keeps them as bits."""
    masks = []
    for image in range(2):
        name = f"target/{target_set}/{image}/masks"
        shape = case.info["packed_bits"][name]
        bits = np.unpackbits(case.expected[name].numpy(), count=int(np.prod(shape)))
        masks.append(torch.from_numpy(bits.reshape(shape).astype(bool)))
    return masks


def labels_of(case: Case, target_set: str) -> list[dict[str, Tensor]]:
    labels = case.labels(target_set)
    for target, masks in zip(labels, recorded_masks(case, target_set), strict=True):
        target["masks"] = masks
    return labels


# ---------------------------------------------------------------- the official model


@pytest.fixture(scope="module")
def official(
    reference_dir: Path,
    weights: ModuleType,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[DetrForSegmentation, Case]:
    case = Case(reference_dir / "official" / "detr-r50-panoptic", weights)
    return converted(case, DetrForSegmentation, tmp_path_factory), case


def test_official_files_convert_back(official: tuple[DetrForSegmentation, Case]) -> None:
    """Protects panoptic files on the way to the Hub and back."""
    assert_converts_back(official[1])


@torch.no_grad()
def test_official_masks(official: tuple[DetrForSegmentation, Case]) -> None:
    """Protects classes, boxes and masks of the paper's own panoptic model."""
    model, case = official
    output = model(case.pixel_values, case.pixel_mask)
    expected = case.expected
    assert_close(output.logits, expected["out/pred_logits"], atol=5e-4, rtol=0)
    assert_close(output.pred_boxes, expected["out/pred_boxes"], atol=5e-5, rtol=0)
    masks, cut = output.pred_masks, case.info["slices"].get("out/pred_masks")
    if cut is not None:
        steps = [slice(None)] * masks.ndim
        steps[cut["dim"]] = slice(None, None, cut["step"])
        masks = masks[tuple(steps)]
    scale = expected["out/pred_masks"].abs().max()
    assert_close(masks / scale, expected["out/pred_masks"] / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("threshold", ["0.85", "0.5", "0.25"])
@torch.no_grad()
def test_official_panoptic_merge(
    official: tuple[DetrForSegmentation, Case], threshold: str
) -> None:
    """Protects the paper's segments of the paper's model, from images to records."""
    model, case = official
    info = case.info["panoptic"]
    output = model(case.pixel_values, case.pixel_mask)
    for image, processed_hw in enumerate(info["processed_sizes"]):
        # One by one: the original doesn't cut off the padding of a batch.
        one = slice(image, image + 1)
        outputs = transformers.utils.ModelOutput(
            logits=output.logits[one],
            pred_masks=output.pred_masks[one],
            pixel_mask=torch.ones(1, *processed_hw),
        )
        (result,) = hf_detr.DetrImageProcessor().post_process_panoptic_merge(
            outputs,
            float(threshold),
            set(range(91, 250)),
            target_sizes=info["target_sizes"][one],
        )
        expected = case.expected[f"post/panoptic/{threshold}/{image}/ids"]
        assert (result["segmentation"] - 1 != expected).float().mean() < 2e-3
        got = [(s["label_id"], not s["was_fused"]) for s in result["segments_info"]]
        segments = info["segments_info"][threshold][image]
        assert got == [(s["category_id"], s["isthing"]) for s in segments]


@pytest.mark.parametrize("target_set", ["main", "one_empty", "all_empty", "crowded"])
def test_official_losses_and_gradients(
    official: tuple[DetrForSegmentation, Case], target_set: str
) -> None:
    """Protects every term, the total and its gradient, with masks of matched queries only."""
    model, case = official
    recorded = case.info["target_sets"][target_set]
    model.zero_grad()
    output = model(case.pixel_values, case.pixel_mask, labels=labels_of(case, target_set))
    output.loss.backward()
    near_ties = {
        "loss_ce" if layer == "last" else f"_{layer}" for layer in recorded["match_not_robust"]
    }
    for name, value in recorded["losses"].items():
        tolerance = 1e-2 if any(name.endswith(suffix) for suffix in near_ties) else 1e-4
        got = output.loss_dict[name].item()
        assert got == pytest.approx(value, rel=tolerance, abs=1e-5), name
    assert output.loss.item() == pytest.approx(recorded["total"], rel=1e-3 if near_ties else 1e-4)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    total = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
    assert total == pytest.approx(recorded["grad_norms"]["total"], rel=1e-3)


# ---------------------------------------------------------------- files


def load_recorded(case: Case, version: str, model_class: type, folder: Path) -> Segmenter:
    """Our model from a configuration that transformers wrote and the case's weights."""
    shutil.copy(case.folder / f"config_{version}.json", folder / "config.json")
    save_file(case.state, folder / "model.safetensors", metadata={"format": "pt"})
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def assert_masks_recorded(masks: Tensor, case: Case) -> None:
    expected = case.expected["default/pred_masks"]
    cut = case.info["slices"].get("default/pred_masks")
    masks = masks if cut is None else masks[:, :: cut["step"]]
    scale = expected.abs().max()
    assert_close(masks / scale, expected / scale, atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", ["v4.57", "v5.23"])
def test_files_of_transformers(
    version: str,
    reference_dir: Path,
    weights: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Protects checkpoints on the Hub: all their tensors are used, masks and loss as recorded."""
    case = Case(reference_dir / "transformers" / "detr-segmentation", weights)
    model = load_recorded(case, version, DetrForSegmentation, tmp_path)
    with torch.no_grad():
        output = model(case.pixel_values, case.pixel_mask, labels=labels_of(case, "main"))
    assert_masks_recorded(output.pred_masks, case)
    assert_close(output.logits, case.expected["default/logits"], atol=5e-4, rtol=0)
    recorded = case.info["runs"]["default"]["main"]
    for name in ("loss_ce", "loss_bbox", "loss_giou", "loss_mask", "loss_dice"):
        got = output.loss_dict[name].item()
        assert got == pytest.approx(recorded["loss_dict"][name], rel=1e-4), name


@pytest.mark.parametrize("size", ["resized", "raw"])
@pytest.mark.parametrize("settings", ["default", "loose"])
@torch.no_grad()
def test_segments_of_transformers(
    settings: str,
    size: str,
    reference_dir: Path,
    weights: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Protects segments from images on: maps and records as transformers has them."""
    case = Case(reference_dir / "transformers" / "detr-segmentation", weights)
    model = load_recorded(case, "v5.23", DetrForSegmentation, tmp_path)
    output = model(case.pixel_values, case.pixel_mask)
    output["pixel_mask"] = None  # transformers leaves the padding in
    post, processor = case.info["post"], hf_detr.DetrImageProcessor()
    sizes = post["segmentation_target_sizes"] if size == "resized" else None
    options = {**post[f"panoptic/{settings}/{size}"]["settings"], "target_sizes": sizes}
    fused = set(range(91, 250))
    for kind, results in {
        f"panoptic/{settings}": processor.post_process_panoptic_segmentation(
            output, label_ids_to_fuse=fused, **options
        ),
        f"instance/{settings}": processor.post_process_instance_segmentation(output, **options),
    }.items():
        recorded = post[f"{kind}/{size}"]["segments_info"]
        for image, (result, segments) in enumerate(zip(results, recorded, strict=True)):
            got = [(s["label_id"], s["was_fused"]) for s in result["segments_info"]]
            assert got == [(s["label_id"], s["was_fused"]) for s in segments]
            expected = case.expected[f"post/{kind}/{size}/{image}"]
            assert (result["segmentation"] != expected).float().mean() < 2e-3
    for image, classes in enumerate(processor.post_process_semantic_segmentation(output, sizes)):
        expected = case.expected[f"post/semantic/{size}/{image}"]
        assert (classes != expected).float().mean() < 2e-3


@pytest.mark.parametrize("version", ["v4.57", "v5.23"])
@torch.no_grad()
def test_conditional_files_of_transformers(
    version: str,
    reference_dir: Path,
    weights: ModuleType,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Protects Conditional DETR's files: recorded classes and masks; boxes get their references."""
    case = Case(reference_dir / "transformers" / "conditional-detr-segmentation", weights)
    model = load_recorded(case, version, ConditionalDetrForSegmentation, tmp_path)
    output = model(case.pixel_values, case.pixel_mask, output_attentions=True)
    assert_masks_recorded(output.pred_masks, case)
    assert_close(output.logits, case.expected["default/logits"], atol=5e-4, rtol=0)
    # transformers leaves the reference points out: sigmoid(delta) for sigmoid(delta + reference).
    deltas = case.expected["default/pred_boxes"].double().logit()
    deltas[..., :2] += inverse_sigmoid(output.reference_points[-1].double())
    assert_close(output.pred_boxes.double(), deltas.sigmoid(), atol=5e-5, rtol=0)


@pytest.mark.parametrize("two_way_variant", ["detr", "conditional_detr"])
@torch.no_grad()
def test_transformers_loads_ours(two_way_variant: str, tmp_path: Path) -> None:
    """Protects users of plain transformers: the same masks from the files that we write."""
    model = tiny_segmenter(two_way_variant)
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(model.state_dict())
    peer, info = class_of(two_way_variant, "ForSegmentation", transformers).from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_predictions(model, peer.eval(), two_way_variant)


@pytest.mark.parametrize("two_way_variant", ["detr", "conditional_detr"])
@torch.no_grad()
def test_we_load_what_transformers_saves(two_way_variant: str, tmp_path: Path) -> None:
    """Protects models that were trained there."""
    ours = tiny_config(two_way_variant, backbone="resnet18", d_model=128, encoder_attention_heads=8)
    config = class_of(two_way_variant, "Config", transformers).from_dict(ours.to_dict())
    torch.manual_seed(0)
    peer = class_of(two_way_variant, "ForSegmentation", transformers)(config).eval()
    peer.save_pretrained(tmp_path)
    model, info = class_of(two_way_variant, "ForSegmentation").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert_same_predictions(model, peer, two_way_variant)


def assert_same_predictions(model: Segmenter, peer: torch.nn.Module, variant: str) -> None:
    """Classes and masks are transformers'; boxes where its model has the paper's."""
    pixel_values, pixel_mask = padded_batch()
    got = model(pixel_values, pixel_mask)
    expected = peer(pixel_values=pixel_values, pixel_mask=pixel_mask)
    assert_close(got.logits, expected.logits, atol=1e-4, rtol=0)
    assert_close(got.pred_masks, expected.pred_masks, atol=1e-4, rtol=1e-4)
    if variant == "detr":
        assert_close(got.pred_boxes, expected.pred_boxes, atol=1e-5, rtol=0)


DEFORMABLE = [
    {},
    {"num_feature_levels": 1},
    {"with_box_refine": True},
    {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 7},
]


@pytest.mark.parametrize("changes", DEFORMABLE, ids=["plain", "single scale", "refine", "two"])
@torch.no_grad()
def test_deformable_files(changes: dict, tmp_path: Path) -> None:
    """Protects every Deformable configuration with masks: saved and loaded to the same outputs."""
    model = tiny_segmenter("deformable_detr", **changes)
    model.save_pretrained(tmp_path)
    loaded, info = hf_detr.DeformableDetrForSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(info.values()), info
    assert loaded.config.num_mask_levels == (3 if changes.get("num_feature_levels") == 1 else 1)
    batch = padded_batch()
    got, expected = loaded(*batch), model(*batch)
    assert got.pred_masks.shape == (2, 7, 16, 24)
    for name in ("logits", "pred_boxes", "pred_masks"):
        assert_close(got[name], expected[name], atol=0, rtol=0)


@pytest.mark.parametrize("variant", WITH_MASKS)
def test_starts_from_a_detector(variant: str, tmp_path: Path) -> None:
    """Protects the paper's two steps: a trained detector, then a new mask head."""
    config = tiny_config(variant, d_model=128, encoder_attention_heads=8)
    torch.manual_seed(0)
    detector = class_of(variant, "ForObjectDetection")(config).eval()
    detector.save_pretrained(tmp_path)
    model, info = class_of(variant, "ForSegmentation").from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert all(name.startswith(("mask_head", "bbox_attention")) for name in info["missing_keys"])
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    state = model.detector.state_dict()
    for name, tensor in detector.state_dict().items():
        assert_close(state[name], tensor, atol=0, rtol=0)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with torch.no_grad():
        batch = padded_batch()
        assert_close(model(*batch).logits, detector(*batch).logits, atol=1e-6, rtol=0)


# ---------------------------------------------------------------- segments


@torch.no_grad()
def test_segments_equal_transformers(tmp_path: Path) -> None:
    """Protects the processor's three kinds of segments, on outputs of a model, nothing padded."""
    model = tiny_segmenter(num_queries=30)
    output = model(padded_batch()[0])
    output["logits"] = 5 * torch.randn(2, 30, 6)
    output["pred_masks"] = 8 * torch.randn(2, 30, 16, 24)
    ours, theirs = hf_detr.DetrImageProcessor(), transformers.DetrImageProcessor()
    options = {"target_sizes": [(40, 50), (30, 60)], "overlap_mask_area_threshold": 0.1}
    got = ours.post_process_panoptic_segmentation(output, label_ids_to_fuse=set(), **options)
    expected = theirs.post_process_panoptic_segmentation(output, label_ids_to_fuse=set(), **options)
    assert len(got[0]["segments_info"]) > 3
    for one, other in zip(got, expected, strict=True):
        assert_close(one["segmentation"], other["segmentation"], atol=0, rtol=0)
        assert one["segments_info"] == other["segments_info"]
    options["return_coco_annotation"] = True
    got = ours.post_process_instance_segmentation(output, **options)
    assert got == theirs.post_process_instance_segmentation(output, **options)
    sizes = options["target_sizes"]
    got = ours.post_process_semantic_segmentation(output, sizes)
    assert_close(got, theirs.post_process_semantic_segmentation(output, sizes), atol=0, rtol=0)
    got = ours.post_process_semantic_segmentation(output, sizes, True)
    expected = theirs.post_process_semantic_segmentation(output, sizes, True)
    for one, other in zip(got, expected, strict=True):
        assert type(one) is type(other)
        assert_close(one["segmentation"], other["segmentation"], atol=0, rtol=0)
        assert_close(one.segmentation_scores, other.segmentation_scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["semantic", "instance", "panoptic"])
@pytest.mark.parametrize("prefix", ["Detr", "ConditionalDetr"])
def test_signatures_are_those_of_transformers(prefix: str, kind: str) -> None:
    """Protects calls written for transformers: its arguments, order and defaults."""
    name = f"post_process_{kind}_segmentation"
    ours, theirs = (
        inspect.signature(getattr(getattr(module, f"{prefix}ImageProcessor"), name)).parameters
        for module in (hf_detr, transformers)
    )
    assert [(p.name, p.default) for p in ours.values()] == [
        (p.name, p.default) for p in theirs.values()
    ]


def test_half_precision_and_gradients() -> None:
    """Protects outputs in bfloat16, or with gradients: the maps of the same ones in float32."""
    logits = (5 * torch.randn(1, 9, 6, generator=torch.Generator().manual_seed(0))).bfloat16()
    masks = (8 * torch.randn(1, 9, 8, 12, generator=torch.Generator().manual_seed(1))).bfloat16()
    outputs = [
        transformers.utils.ModelOutput(
            logits=logits.to(dtype).requires_grad_(needs_gradient),
            pred_masks=masks.to(dtype).requires_grad_(needs_gradient),
        )
        for dtype, needs_gradient in ((torch.float32, False), (torch.bfloat16, True))
    ]
    processor = hf_detr.DetrImageProcessor()
    for name in ("semantic_segmentation", "panoptic_segmentation", "panoptic_merge"):
        make = getattr(processor, f"post_process_{name}")
        expected, got = [make(one, target_sizes=[(30, 40)]) for one in outputs]
        assert_close(got, expected, atol=0, rtol=0)


@pytest.mark.parametrize("variant", WITH_MASKS)
@torch.no_grad()
def test_bf16_models(variant: str) -> None:
    """Protects masks of bfloat16 models, whose positions of boxes are computed in float32."""
    model = tiny_segmenter(variant)
    batch = padded_batch()
    expected = model(*batch).pred_masks
    masks = model.bfloat16()(*batch).pred_masks
    assert_close(masks.float() / expected.std(), expected / expected.std(), atol=0.2, rtol=0)


def test_scores_of_sigmoid_models() -> None:
    """Protects variants without a class "no object", whose last class is one like any other."""
    outputs = transformers.utils.ModelOutput(
        logits=torch.tensor([[[-9.0, 3.0], [-9.0, -9.0]]]), pred_masks=torch.full((1, 2, 2, 2), 9.0)
    )
    processor = hf_detr.ConditionalDetrImageProcessor()
    (result,) = processor.post_process_panoptic_segmentation(outputs)
    (segment,) = result["segments_info"]
    assert segment["label_id"] == 1 and segment["score"] == pytest.approx(0.9526, abs=1e-4)
    (result,) = processor.post_process_panoptic_merge(outputs, min_area=4)
    (segment,) = result["segments_info"]
    assert segment["label_id"] == 1 and segment["area"] == 4
    (classes,) = processor.post_process_semantic_segmentation(outputs)
    assert (classes == 1).all()


@pytest.fixture
def segment(variant: str, tmp_path: Path) -> transformers.ImageSegmentationPipeline:
    """A pipeline from a folder, which asks the Auto classes for our model and processor."""
    model = tiny_segmenter(variant)
    model.save_pretrained(tmp_path)
    class_of(variant, "ImageProcessor")(size={"shortest_edge": 64}).save_pretrained(tmp_path)
    pipeline = transformers.pipeline("image-segmentation", model=str(tmp_path))
    assert type(pipeline.model) is class_of(variant, "ForSegmentation")
    return pipeline


PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "images" / "coffee.jpg"
EVERYTHING = {"threshold": 0.0, "mask_threshold": 0.0, "overlap_mask_area_threshold": 0.0}


@pytest.mark.parametrize("variant", WITH_MASKS)
@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_pipeline(segment: transformers.ImageSegmentationPipeline, subtask: str) -> None:
    """Protects `pipeline("image-segmentation")` for all variants and subtasks."""
    results = segment(str(PHOTOGRAPH), subtask=subtask, **EVERYTHING)
    with Image.open(PHOTOGRAPH) as image:
        assert all(result["mask"].size == image.size for result in results)
    assert results and {"score", "label", "mask"} == set(results[0])


@pytest.mark.parametrize("variant", WITH_MASKS)
def test_pipeline_batches_of_mixed_sizes(segment: transformers.ImageSegmentationPipeline) -> None:
    """Protects images in a batch: each gets the masks of its own size, padding cut off."""
    with Image.open(PHOTOGRAPH) as photograph:
        images = [photograph.copy(), photograph.crop((0, 0, 200, 300)), photograph.resize((90, 40))]
    alone = [segment(image, **EVERYTHING) for image in images]
    batched = segment(images, batch_size=3, **EVERYTHING)
    for image, one, other in zip(images, alone, batched, strict=True):
        assert other and all(result["mask"].size == image.size for result in other)
        maps = [label_map(results) for results in (one, other)]
        # Convolutions see zeros beyond the border of a padded image, so a few pixels differ.
        assert (maps[0] == maps[1]).mean() > 0.8


def label_map(results: list[dict]) -> np.ndarray:
    """(H, W) text, the label of every pixel."""
    labels = np.full(results[0]["mask"].size[::-1], "nothing", dtype=object)
    for result in results:
        labels[np.asarray(result["mask"]) > 0] = result["label"]
    return labels


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("variant", WITH_MASKS)
def test_frozen_detector(variant: str) -> None:
    """Protects training of the mask head alone: nothing else gets a gradient."""
    model = tiny_segmenter(variant).train()
    model.freeze_detector()
    model(*padded_batch(), labels=labels_with_masks()).loss.backward()
    for name, parameter in model.named_parameters():
        is_head = name.startswith(("mask_head", "bbox_attention"))
        assert (parameter.grad is not None) == is_head == parameter.requires_grad, name


@pytest.mark.parametrize("variant", WITH_MASKS)
def test_training_computes_matched_masks_only(variant: str) -> None:
    """Protects memory: the same loss as in evaluation, without the masks of all queries."""
    model = tiny_segmenter(variant, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0)
    model.add_denoising(0)
    batch, labels = padded_batch(), labels_with_masks()
    evaluated = model(*batch, labels=labels)
    trained = model.train()(*batch, labels=labels)
    assert evaluated.pred_masks.shape[:2] == (2, 7) and trained.pred_masks is None
    assert_close(trained.loss, evaluated.loss, atol=1e-5, rtol=1e-5)


def test_panoptic_annotations_train_it(tmp_path: Path) -> None:
    """Protects the way from PNG to mask loss: what the processor makes is what the model takes."""
    ids = np.zeros((40, 50), dtype=int)
    ids[5:30, 10:40] = 300
    write_png(tmp_path / "a.png", ids)
    annotation = {"file_name": "a.png", "segments_info": [{"id": 300, "category_id": 2}]}
    processor = hf_detr.DetrImageProcessor(format="coco_panoptic", size={"shortest_edge": 64})
    inputs = processor(
        [Image.new("RGB", (50, 40)), Image.new("RGB", (50, 40))],
        [{"image_id": 1, **annotation}, {"image_id": 2, **annotation, "segments_info": []}],
        masks_path=tmp_path,
        return_tensors="pt",
    )
    output = tiny_segmenter().train()(**inputs)
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.loss_dict["loss_dice"] > 0


@pytest.mark.parametrize("variant", WITH_MASKS)
def test_no_objects_at_all(variant: str) -> None:
    """Protects batches without objects, whose mask losses are zero."""
    output = tiny_segmenter(variant).train()(*padded_batch(), labels=labels_with_masks((0, 0)))
    output.loss.backward()
    assert output.loss_dict["loss_mask"] == 0 and output.loss_dict["loss_dice"] == 0


def test_labels_of_another_area() -> None:
    """Labels without the mask of their padding are refused, as the detector does; so is a loss."""
    model, (pixel_values, pixel_mask) = tiny_segmenter(), padded_batch()
    labels = labels_with_masks()
    for target, mask in zip(labels, pixel_mask, strict=True):
        target["size"] = torch.stack([mask.any(1).sum(), mask.any(0).sum()])
    assert model(pixel_values, pixel_mask, labels=labels).loss.isfinite()
    with pytest.raises(ValueError, match="there is no pixel_mask"):
        model(pixel_values, labels=labels)
    assert model.loss_function is model.criterion
    with pytest.raises(AttributeError, match="can't be set"):
        model.loss_function = print


def test_masks_that_do_not_fit() -> None:
    """Protects from masks that are missing, of another number, or larger than the batch."""
    model, (pixel_values, pixel_mask) = tiny_segmenter(), padded_batch()
    labels = labels_with_masks()
    for masks, message in [
        (torch.zeros(3, 64, 96), r"masks of shape \(3, 64, 96\) for 2 objects"),
        (torch.zeros(2, 65, 96), "masks of 65 x 96 pixels, more than the batch's 64 x 96"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(pixel_values, pixel_mask, labels=[{**labels[0], "masks": masks}, labels[1]])
    with pytest.raises(ValueError, match="label 0 has no 'masks'"):
        model(pixel_values, pixel_mask, labels=some_labels())
