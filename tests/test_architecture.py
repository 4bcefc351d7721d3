"""The shape of the package: who imports whom, how long things are, what stays apart."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "hf_detr"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

# A module imports from lower layers only.
LAYERS = [
    {"kernel_build", "whole_saving", "wording", "folded_backbone"},
    {"kernel_loader"},
    {"compiled_attention"},
    {
        *("box_ops", "attention", "position_encoding", "backbone"),
        *("configuration_backbone", "configuration_checks", "image_reading", "image_settings"),
        *("embedding_bag_sampling", "coco_masks", "image_canvas", "coco_records", "processes"),
        *("box_formats", "resized_argmax", "feature_pyramid"),
        *("checkpoint_files", "checkpoint_names", "coco_labels"),
        *("training_checkpoint", "training_plan", "model_ema", "model_card"),
        "loading_checks",
    },
    {
        *("configuration_detr", "transformer_layer"),
        *(
            "targets",
            "losses",
            "postprocess",
            "postprocess_masks",
            "training_state",
            "panoptic_annotations",
            "panoptic_quality",
            "multi_scale_deformable_attention",
        ),
    },
    {
        "official_configuration",
        "published_checkpoints",
        "mmdetection_names",
    },
    {"detrex_names"},
    {"classification", "encoder", "deformable_attention", "mask_head", "annotations"},
    {"augmentation", "coco_evaluator"},
    {"annotation_table"},
    {"image_source"},
    {"annotation_entries", "detection_data"},
    {"coco_data", "voc_data", "yolo_data", "hub_data"},
    {"data_formats", "data_problems", "command_options"},
    {"data_check"},
    {"matcher", "heads"},
    {"criterion"},
    {"query_groups"},
    {"outputs", "pretrained_model"},
    {"training_health"},
    {"image_processing_detr", "detection_transformer"},
    {"image_processing_sigmoid_detr", "pipelines", "segmentation", "batches", "publishing"},
    {"prediction", "drawing", "model_loading"},
    {"modeling_detr", "modeling_conditional_detr", "modeling_deformable_detr"},
    {"modeling_detr_segmentation", "evaluation"},
    {"trainer_metrics", "official_checkpoints", "observation", "figures"},
    {"observing", "attention_plots", "detection_plots", "training_plots"},
    {"sampling_plots"},
    {"plots"},
    {"checkpoint_conversion", "model_export", "latency", "doctor", "check_command"},
    {"prediction_command", "evaluation_command", "export_command", "bench_command"},
    {"video_command"},
    {"__main__"},
    {"__init__"},
]
SIDES = {
    "model": {"backbone", "encoder", "feature_pyramid", "detection_transformer"},
    "loss": {
        *("targets", "classification", "matcher", "losses", "criterion"),
        "postprocess",
    },
}
ONLY_IN = {
    "timm": {"backbone"},
    "scipy": {"matcher"},
    "matplotlib": {"figures"},
    "torchvision": {"augmentation", "detection_data"},
}
VARIANT_LINES, SHARED_LINES = 450, 320
LONGEST_FUNCTION = 60
VARIANTS = ("detr", "conditional", "deformable")


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text())


def imports(module: str) -> list[ast.Import | ast.ImportFrom]:
    nodes = ast.walk(parse(module))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def siblings(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    return {n.module for n in imports(module) if isinstance(n, ast.ImportFrom) and n.level == 1}


def layer_of(module: str) -> int:
    found = [level for level, names in enumerate(LAYERS) if module in names]
    assert len(found) == 1, f"{module} must stand in exactly one layer of test_architecture.py"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_dependencies_point_down(module: str) -> None:
    """Imports go from higher to lower layers, so the package can be read from the bottom."""
    for other in siblings(module):
        assert layer_of(other) < layer_of(module), f"{module} imports {other}, which isn't below it"


def test_loss_side_never_imports_a_model() -> None:
    """Losses and matching know tensors and targets only."""
    for module in SIDES["loss"]:
        assert not siblings(module) & SIDES["model"], module


@pytest.mark.parametrize("module", MODULES)
def test_imports_within_the_package_are_flat_and_relative(module: str) -> None:
    """`from .module import name`, and nothing else."""
    for node in imports(module):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("hf_detr") for alias in node.names)
        elif node.level:
            assert node.level == 1 and node.module in MODULES
        else:
            assert (node.module or "").split(".")[0] != "hf_detr"


@pytest.mark.parametrize(("library", "modules"), ONLY_IN.items())
def test_libraries_stay_where_they_belong(library: str, modules: set[str]) -> None:
    """timm, scipy and torchvision each serve one place."""
    for module in MODULES:
        for node in imports(module):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [alias.name for alias in node.names]
            )
            used = any(name.split(".")[0] == library for name in names)
            assert not used or module in modules, f"{module} imports {library}"


@pytest.mark.parametrize("module", MODULES)
def test_sizes(module: str) -> None:
    """Files and functions stay short enough to be read at once."""
    source = (PACKAGE / f"{module}.py").read_text()
    most = VARIANT_LINES if module.startswith("modeling") else SHARED_LINES
    assert len(source.splitlines()) <= most, module
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_FUNCTION, f"{module}.{node.name} has {length} lines"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_shared_code_names_no_variant(module: str) -> None:
    """Class and function names of shared modules don't carry a variant's name."""
    if module.startswith("modeling_") or module.endswith("_detr"):
        return
    for node in ast.walk(parse(module)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            assert not node.name.lower().startswith(VARIANTS), f"{module}.{node.name}"


@pytest.mark.parametrize("module", MODULES)
def test_public_things_have_docstrings(module: str) -> None:
    """Every module, public class and public function says what it is."""
    tree = parse(module)
    assert ast.get_docstring(tree), module
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_every_module_has_its_tests() -> None:
    """tests/ mirrors hf_detr/."""
    elsewhere = {
        "__init__": "test_init",
        "__main__": "test_command_line",
        "check_command": "test_data_check",
        "export_command": "test_model_export",
        "bench_command": "test_latency",
        "modeling_detr": "test_parity",
        "modeling_conditional_detr": "test_parity",
        "modeling_deformable_detr": "test_parity",
        "pretrained_model": "test_hub_round_trip",
        "embedding_bag_sampling": "test_multi_scale_deformable_attention",
        "configuration_backbone": "test_configuration_detr",
        "configuration_checks": "test_configuration_detr",
        "image_processing_sigmoid_detr": "test_image_processing_detr",
        "transformer_layer": "test_encoder",
        "outputs": "test_detection_transformer",
        "processes": "test_training_health",
        "official_configuration": "test_official_checkpoints",
        "checkpoint_names": "test_official_checkpoints",
    }
    for module in MODULES:
        name = elsewhere.get(module, f"test_{module}")
        assert (REPOSITORY / "tests" / f"{name}.py").is_file(), module


def test_kernels_folder_is_no_package() -> None:
    """A package `kernels` here would shadow the one from PyPI, which transformers imports."""
    assert (REPOSITORY / "kernels").is_dir()
    assert not list((REPOSITORY / "kernels").glob("*.py"))
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    # Without __init__.py the folder can only be a namespace, which any installed package beats.
    assert found == "None" or "site-packages" in found


def test_variants_share_no_block() -> None:
    """What two variants have in common stands in a shared module: no eight lines twice.

    Lines of a signature don't count: hooks and layers have to take what they are given.
    """

    def blocks(module: str) -> set[tuple[str, ...]]:
        lines = (PACKAGE / f"{module}.py").read_text().splitlines()
        code = [line.strip() for line in lines if len(line.strip()) > 2]
        code = [line for line in code if not line.startswith(("import", "from", "#"))]
        code = [line for line in code if not re.fullmatch(r"\w+: [\w |\[\],.]+,", line)]
        return {tuple(code[i : i + 8]) for i in range(len(code) - 7)}

    variants = [module for module in MODULES if module.startswith("modeling")]
    assert len(variants) >= 3
    for index, one in enumerate(variants):
        for other in variants[index + 1 :]:
            shared = blocks(one) & blocks(other)
            assert not shared, f"{one} and {other} both have:\n" + "\n".join(min(shared))
