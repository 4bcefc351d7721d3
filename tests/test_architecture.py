"""The shape of the package: which room imports which, how long things are, what stays apart."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "hf_detr"
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")
)

# What a room may import: the modules at the root that import nothing of ours, rooms further up in
# this list, and itself.
ROOT = ("atomic_saving", "distributed", "wording")
ROOMS = (
    *("ops", "losses", "layers", "image_processing", "models", "data", "inference"),
    *("checkpoints", "evaluation", "plots", "training", "commands"),
)
NEVER = {"layers": {"losses"}}  # losses know tensors and targets only, layers nothing of them
ONLY_IN = {
    "timm": {"layers.backbone", "layers.fused_blocks"},
    "scipy": {"losses.matcher"},
    "matplotlib": {"plots.figures"},
    "torchvision": {"data.augmentation", "data.dataset"},
}
VARIANTS = sorted(path.parent.name for path in PACKAGE.glob("models/*/modeling_*.py"))
VARIANT_LINES, SHARED_LINES = 450, 320
LONGEST_FUNCTION = 60


def parse(module: str) -> ast.Module:
    return ast.parse(source(module))


def source(module: str) -> str:
    return PACKAGE.joinpath(*module.split(".")).with_suffix(".py").read_text()


def imports(module: str) -> list[ast.Import | ast.ImportFrom]:
    nodes = ast.walk(parse(module))
    return [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]


def siblings(module: str) -> set[str]:
    """Modules of the package that a module imports."""
    found = set()
    package = module.split(".")[:-1]
    for node in imports(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            found.add(".".join([*base, *(node.module or "").split(".")]).strip("."))
    return found


def room_of(module: str) -> str:
    """The sub-package of a module; the module itself at the root."""
    return module.split(".")[0]


def variant_of(module: str) -> str | None:
    """The variant whose folder a module is in, if any."""
    parts = module.split(".")
    return parts[1] if parts[0] == "models" and len(parts) == 3 else None


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__", "__main__"}))
def test_imports_between_rooms_run_one_way(module: str) -> None:
    """The package can be read room by room, from the first one on."""
    room = room_of(module)
    for other in siblings(module):
        target = room_of(other)
        if room in ROOT:
            pytest.fail(f"{module} imports {other}; modules at the root import nothing of ours")
        if target in ROOT or target == room:
            continue
        assert ROOMS.index(target) < ROOMS.index(room), f"{module} imports {other}, further down"
        assert target not in NEVER.get(room, set()), f"{module} imports {other}"


def test_no_circles() -> None:
    """Within a room, too, no module imports itself by way of others."""
    TopologicalSorter({module: siblings(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_imports_within_the_package_are_relative_and_of_modules(module: str) -> None:
    """`from ..room.module import name`: what a name comes from is to be seen."""
    for node in imports(module):
        if isinstance(node, ast.Import):
            assert all(not alias.name.startswith("hf_detr") for alias in node.names)
        elif not node.level:
            assert (node.module or "").split(".")[0] != "hf_detr"
    for other in siblings(module):
        assert other in MODULES, f"{module} imports from {other}, which isn't a module"


@pytest.mark.parametrize("module", MODULES)
def test_text_files_have_an_encoding(module: str) -> None:
    """The default is that of the user's locale: names with accents would differ on Windows."""
    for node in ast.walk(parse(module)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        is_text = name in ("read_text", "write_text") or (
            # Not os.open, av.open, PIL.Image.open, or those with a mode of bytes.
            (isinstance(node.func, ast.Name) and name == "open")
            or (name == "open" and node.args and ast.unparse(node.args[0]) in ("'w'", "'a'", "'r'"))
        )
        is_bytes = any("b'" in ast.unparse(argument) for argument in node.args)
        if is_text and not is_bytes:
            named = {keyword.arg for keyword in node.keywords}
            assert "encoding" in named, f"{module}:{node.lineno}: {name} without encoding"


@pytest.mark.parametrize(("library", "modules"), ONLY_IN.items())
def test_libraries_stay_where_they_belong(library: str, modules: set[str]) -> None:
    """timm, scipy and torchvision each serve one purpose."""
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
    text = source(module)
    most = VARIANT_LINES if variant_of(module) else SHARED_LINES
    assert len(text.splitlines()) <= most, module
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_FUNCTION, f"{module}.{node.name} has {length} lines"


def test_only_the_table_lists_variants() -> None:
    """A new variant is its folder and a row: no other module imports or names one."""
    for module in MODULES:
        if module in ("__init__", "models.variants"):
            continue
        own = variant_of(module)
        others = {variant_of(sibling) for sibling in siblings(module)} - {None, own}
        assert not others, f"{module} imports the variants {others}"
        if own is None:
            named = {
                node.value
                for node in ast.walk(parse(module))
                if isinstance(node, ast.Constant) and node.value in VARIANTS
            }
            assert not named, f"{module} names the variants {named}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"__init__"}))
def test_shared_code_names_no_variant(module: str) -> None:
    """Class and function names of shared modules don't carry a variant's name."""
    ordinary = {"table"}  # words that aren't a variant's name by themselves
    first = {variant: variant.split("_")[0] for variant in VARIANTS}
    names = tuple(
        variant.replace("_", "") if word in ordinary else word for variant, word in first.items()
    )
    if variant_of(module):
        return
    for node in ast.walk(parse(module)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            assert not node.name.lower().startswith(names), f"{module}.{node.name}"


@pytest.mark.parametrize("module", MODULES)
def test_public_things_have_docstrings(module: str) -> None:
    """Every module, public class and public function says what it is."""
    tree = parse(module)
    assert ast.get_docstring(tree), module
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{module}.{node.name}"


def test_every_module_has_its_tests() -> None:
    """tests/ mirrors hf_detr/; a variant's folder is tested by what runs over all variants."""
    elsewhere = {
        "__main__": "commands/test_command_line",
        "ops.embedding_bag_sampling": "ops/test_multi_scale_deformable_attention",
        "image_processing.sigmoid_image_processor": "image_processing/test_image_processor",
        "models.configuration_backbone": "models/test_configuration",
        "models.configuration_checks": "models/test_configuration",
        "models.configuration_sampled_attention": "models/test_configuration",
        "models.outputs": "models/test_detection_transformer",
        "models.pretrained_model": "models/test_hub_round_trip",
        "models.variants": "test_init",
        "data.object_rows": "data/test_hub",
        "commands.bench": "inference/test_latency",
        "commands.check": "data/test_check",
        "commands.export": "inference/test_export",
        "commands.train": "training/test_train",
        "training.trainer": "training/test_train",
        "training.card": "training/test_train",
        "checkpoints.official_configuration": "checkpoints/test_official_checkpoints",
        "checkpoints.official_options": "checkpoints/test_official_checkpoints",
        "checkpoints.other_libraries": "checkpoints/test_dino_names",
        "checkpoints.checkpoint_names": "checkpoints/test_official_checkpoints",
    }
    for module in MODULES:
        *folders, name = module.split(".")
        if variant_of(module) or name == "__init__":
            continue
        test = elsewhere.get(module, "/".join([*folders, f"test_{name}"]))
        assert (REPOSITORY / "tests" / f"{test}.py").is_file(), module


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
    """What two variants have in common belongs in a shared module: no eight lines twice.

    Lines of a signature don't count: hooks and layers have to take what they are given.
    """

    def blocks(variant: str) -> set[tuple[str, ...]]:
        lines = source(f"models.{variant}.modeling_{variant}").splitlines()
        code = [line.strip() for line in lines if len(line.strip()) > 2]
        code = [line for line in code if not line.startswith(("import", "from", "#"))]
        code = [line for line in code if not re.fullmatch(r"\w+: [\w |\[\],.]+,", line)]
        return {tuple(code[i : i + 8]) for i in range(len(code) - 7)}

    assert len(VARIANTS) >= 3
    for index, one in enumerate(VARIANTS):
        for other in VARIANTS[index + 1 :]:
            shared = blocks(one) & blocks(other)
            assert not shared, f"{one} and {other} both have:\n" + "\n".join(min(shared))
