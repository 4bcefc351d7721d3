"""Protects what libraries around the models expect of every one of them."""

from pathlib import Path

import accelerate
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from hf_detr.inference.export import Graph

from ..tiny import WITH_HEADS, class_of, padded_batch, tiny_config, tiny_detector

VARIANTS = [
    ("detr", {}),
    ("conditional_detr", {}),
    ("table-transformer", {}),
    (
        "deformable_detr",
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 7},
    ),
    ("dino_detr", {}),
]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("variant, changes", VARIANTS)
def test_low_rank_adapters_learn(variant: str, changes: dict) -> None:
    """Protects PEFT: every adapter gets a gradient, nothing else learns, and merging is exact."""
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["fc1", "fc2"], init_lora_weights=False)
    model = peft.get_peft_model(tiny_detector(variant, **changes), settings).eval()
    pixel_values, pixel_mask = padded_batch()
    logits = model(pixel_values=pixel_values, pixel_mask=pixel_mask).logits
    logits.square().sum().backward()
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns and all("lora_" in name for name in learns)
    gradients = dict(model.named_parameters())
    assert all(gradients[name].grad.abs().max() > 0 for name in learns)
    merged = model.merge_and_unload()
    with torch.no_grad():
        again = merged(pixel_values, pixel_mask).logits
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of torch.ao
@pytest.mark.parametrize("variant, changes", VARIANTS)
def test_dynamic_quantization(variant: str, changes: dict) -> None:
    """Protects tools that look for `nn.Linear` itself: every linear layer becomes one of int8."""
    model = tiny_detector(variant, **changes)
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    batch = padded_batch()
    got, expected = (one.model(*batch).encoder_last_hidden_state for one in (quantized, model))
    assert_close(got, expected, atol=0.2, rtol=0)
    assert quantized(*batch).pred_boxes.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("include_buffers", [False, True])
@pytest.mark.parametrize("variant, changes", VARIANTS)
def test_accelerate_loads_empty_models(
    variant: str, changes: dict, include_buffers: bool, tmp_path: Path
) -> None:
    """Protects Accelerate's own way to load: empty, then from a file; nothing is downloaded."""
    model = tiny_detector(variant, **changes)
    model.save_pretrained(tmp_path)
    config = tiny_config(variant, use_pretrained_backbone=True, **changes)
    with accelerate.init_empty_weights(include_buffers=include_buffers):
        empty = type(model)(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.tie_weights()
    devices = accelerate.infer_auto_device_map(empty, max_memory={"cpu": 10**9})
    assert set(devices.values()) == {"cpu"}
    loaded = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), device_map={"": "cpu"}
    )
    batch = padded_batch()
    assert torch.equal(loaded.eval()(*batch).logits, model(*batch).logits)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:The following device_map keys")  # parameters without module
@pytest.mark.parametrize("variant, changes", [*VARIANTS[:3], ("deformable_detr", {})])
def test_accelerate_splits_a_model_between_memory_and_disk(
    variant: str, changes: dict, tmp_path: Path
) -> None:
    """Protects `load_checkpoint_and_dispatch` with a map for less memory than the weights take."""
    model = tiny_detector(variant, **changes)
    model.save_pretrained(tmp_path)
    with accelerate.init_empty_weights():
        empty = type(model)(tiny_config(variant, **changes))
    memory = {"cpu": int(0.9 * 4 * model.num_parameters()), "disk": 10**9}
    devices = accelerate.infer_auto_device_map(
        empty, memory, no_split_module_classes=empty._no_split_modules
    )
    assert set(devices.values()) == {"cpu", "disk"}
    loaded = accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model.safetensors"), devices, offload_folder=tmp_path / "offloaded"
    )
    batch = padded_batch()
    assert_close(loaded.eval()(*batch).logits, model(*batch).logits, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    "variant, changes, kind",
    [(*one, kind) for one in VARIANTS for variant, kind in WITH_HEADS if variant == one[0]],
)
def test_offloading_to_disk(variant: str, changes: dict, kind: str, tmp_path: Path) -> None:
    """Protects models whose weights are on disk, by Accelerate itself and by `from_pretrained`.

    A weight is there only while its module is called.
    """
    torch.manual_seed(0)
    options = {"d_model": 128, "encoder_attention_heads": 8, "position_embedding_type": "learned"}
    model = class_of(variant, kind)(tiny_config(variant, **options, **changes)).eval()
    model.save_pretrained(tmp_path / "model")
    batch = padded_batch()
    key = "pred_masks" if kind == "ForSegmentation" else "logits"
    expected = model(*batch)[key]
    loaded = type(model).from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "loaded"
    )
    offloaded = accelerate.disk_offload(model, tmp_path / "offloaded")
    for one in (loaded, offloaded):
        assert any(parameter.is_meta for parameter in one.parameters())
        assert_close(one(*batch)[key], expected, atol=1e-4, rtol=0)


def graphs() -> list:
    """Models and settings of Deformable DETR's kernel, as parameters of a test."""
    return [*VARIANTS, *(("deformable_detr", {"kernel": k}) for k in ("torch", "compiled"))]


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the tracer
@pytest.mark.parametrize("variant, changes", graphs())
def test_traced_models(variant: str, changes: dict) -> None:
    """Protects `torch.jit.trace`, whose graph serves other batches and sizes too."""
    sizes = {"encoder_layers": 1, "decoder_layers": 2, **changes}
    graph = Graph(tiny_detector(variant, **sizes)).eval()
    traced = torch.jit.trace(graph, padded_batch(2, 64, 96))
    for shape in ((2, 64, 96), (1, 128, 64), (3, 97, 131)):
        batch = padded_batch(*shape)
        assert_close(traced(*batch), graph(*batch), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")  # of the tracer
def test_traced_models_without_the_operator_that_is_required() -> None:
    """Protects "required" from a graph without the compiled operator."""
    graph = Graph(tiny_detector("deformable_detr", kernel="required")).eval()
    with pytest.raises(RuntimeError, match="torch.jit.trace can't record the compiled operator"):
        torch.jit.trace(graph, padded_batch())


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")  # of the older exporter
@pytest.mark.parametrize("variant, changes", graphs())
def test_older_onnx_exporter(variant: str, changes: dict, tmp_path: Path) -> None:
    """Protects `torch.onnx.export(dynamo=False)`, at the size that it was exported with."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="checking ONNX needs onnxruntime")
    sizes = {"encoder_layers": 1, "decoder_layers": 2, **changes}
    graph = Graph(tiny_detector(variant, **sizes)).eval()
    batch, path = padded_batch(2, 64, 96), tmp_path / "model.onnx"
    names = ("pixel_values", "pixel_mask")
    torch.onnx.export(graph, batch, path, dynamo=False, input_names=names, opset_version=17)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
    got = tuple(torch.from_numpy(array) for array in session.run(None, inputs))
    assert_close(got, graph(*batch), atol=1e-4, rtol=0)
