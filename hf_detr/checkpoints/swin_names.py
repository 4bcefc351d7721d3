"""Swin Transformers in checkpoints of the official code, MMDetection and detrex.

The authors' detection code (arXiv 2103.14030) ends a stage with the merging of its patches and
normalises the maps that leave it; timm begins the next stage with it. MMDetection merges patches by
`nn.Unfold`, whose order of channels is another one.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .checkpoint_names import Rules, apply_rules, rename_weights

# Width, blocks of each stage and size of windows, of timm's models.
_SWINS = {
    "swin_tiny_patch4_window7_224": (96, (2, 2, 6, 2), 7),
    "swin_small_patch4_window7_224": (96, (2, 2, 18, 2), 7),
    "swin_base_patch4_window7_224": (128, (2, 2, 18, 2), 7),
    "swin_base_patch4_window12_384": (128, (2, 2, 18, 2), 12),
    "swin_large_patch4_window7_224": (192, (2, 2, 18, 2), 7),
    "swin_large_patch4_window12_384": (192, (2, 2, 18, 2), 12),
}
_PATCHES = "backbone.0.patch_embed.proj.weight"
_TABLE = ".relative_position_bias_table"
_INDEX = ".relative_position_index"  # computed from the window's size
# From the names of MMDetection, and of detrex, whose only difference is the place of the backbone.
_RULES: Rules = (
    (r"^backbone\.(?!0\.)", "backbone.0."),
    (r"^(backbone\.0\.patch_embed\.)projection\.", r"\1proj."),
    (r"^backbone\.0\.stages\.", "backbone.0.layers."),
    (r"^(backbone\.0\.layers\.\S*\.attn\.)w_msa\.", r"\1"),
    (r"^(backbone\.0\.layers\.\S*)\.ffn\.layers\.0\.0\.", r"\1.mlp.fc1."),
    (r"^(backbone\.0\.layers\.\S*)\.ffn\.layers\.1\.", r"\1.mlp.fc2."),
)


def has_swin_names(names: Iterable[str]) -> bool:
    """Return whether the backbone is a Swin Transformer, by the names of any library."""
    return any(name.startswith("backbone.") and name.endswith(_TABLE) for name in names)


def with_official_swin_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a Swin Transformer and drop indices; other names don't change.

    Raises:
        ValueError: if two names map to the same weight.
    """
    is_unfolded = any(name.startswith("backbone.stages.") for name in weights)
    kept = {name: weight for name, weight in weights.items() if not name.endswith(_INDEX)}
    official = rename_weights(kept, lambda name: apply_rules(_RULES, name))
    for name, weight in official.items():
        if is_unfolded and re.match(r"backbone\.0\.layers\.\d+\.downsample\.", name):
            official[name] = _in_official_order(weight)
    return official


def _in_official_order(weight: Tensor) -> Tensor:
    """Reorder the last dimension, of the channels of four patches, from that of `nn.Unfold`."""
    # (…, 4C) -> (…, C, row, column) -> (…, column, row, C)
    patches = weight.unflatten(-1, (-1, 2, 2))
    return patches.movedim((-1, -2), (-3, -2)).flatten(-3)


def swin_fields(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Return the fields of the configuration that follow from official shapes; None without a Swin.

    Raises:
        ValueError: if it isn't one of timm's.
    """
    table = shapes.get(f"backbone.0.layers.0.blocks.0.attn{_TABLE}")
    if table is None or _PATCHES not in shapes:
        return None
    width, num_channels, *_ = shapes[_PATCHES]
    places = [re.match(r"backbone\.0\.layers\.(\d+)\.blocks\.(\d+)\.", name) for name in shapes]
    blocks = {(int(place[1]), int(place[2])) for place in places if place}
    depths = tuple(sum(stage == number for stage, _ in blocks) for number in range(4))
    window = (round(table[0] ** 0.5) + 1) // 2  # (2 · window - 1)² rows
    found = next((name for name, sizes in _SWINS.items() if sizes == (width, depths, window)), None)
    if found is None:
        raise ValueError(
            f"The backbone is a Swin Transformer of width {width} with {depths} blocks and windows "
            f"of {window}, which timm doesn't have; expected one of {', '.join(_SWINS)}."
        )
    return {"backbone": found, "num_channels": num_channels, "output_norm": True}
