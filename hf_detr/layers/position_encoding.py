"""The position of a feature cell, point or box as a vector: sines or learned tables."""

import math

import torch
from torch import Tensor, nn

from .initial_weights import starting


class SinePositionEncoding(nn.Module):
    """Fixed sines of a cell's place among the real pixels (DETR, appendix A.4).

    Nothing is stored: a buffer outside the checkpoint would come back uninitialised from
    `from_pretrained`.

    Args:
        width: D; half of it encodes y, half x.
        temperature: ratio of the longest to the shortest wavelength.
        offset: added to the count of cells before it is normalised; DETR counts 1, 2, …
            (0), Deformable DETR takes cell centres (-0.5).
    """

    def __init__(self, width: int, temperature: float = 10000, offset: float = 0.0) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature
        self.offset = offset

    def forward(self, mask: Tensor, all_real: bool = False) -> Tensor:
        """Encode a mask (B, h, w), True on real cells, as (B, D, h, w) float32, y before x.

        `all_real` says that the mask is True everywhere, which saves most of the sines.
        """
        # Without padding all rows are alike, all columns too, and all images.
        y, x = (mask[:1, :, :1], mask[:1, :1]) if all_real else (mask, mask)
        y, x = y.float().cumsum(1), x.float().cumsum(2)
        y = (y + self.offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
        x = (x + self.offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
        width, temperature = self.width // 2, self.temperature
        parts = [sines(angles, width, temperature) for angles in (y, x)]
        encoding = torch.cat([part.expand(*mask.shape, width) for part in parts], dim=-1)
        return encoding.permute(0, 3, 1, 2)  # (B, D, h, w)


def sines(angles: Tensor, width: int, temperature: float = 10000) -> Tensor:
    """Sines and cosines (..., width), alternating, of angles (...), wavelengths growing."""
    index = torch.arange(width // 2, device=angles.device, dtype=torch.float32)
    angles = angles[..., None] / temperature ** (2 * index / width)  # (..., width / 2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def encode_points(points: Tensor, width: int, temperature: float = 10000) -> Tensor:
    """Sines of points or boxes, half of `width` for each coordinate, in the dtype of `points`.

    Args:
        points: (..., 2) as (x, y) or (..., 4) as (cx, cy, w, h), in [0, 1].
        width: D.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., D) of points, y before x; (..., 2D) of boxes, y before x, then width and height.
    """
    x, y, *size = (2 * math.pi * points.float()).unbind(-1)
    parts = [sines(angles, width // 2, temperature) for angles in (y, x, *size)]
    return torch.cat(parts, dim=-1).to(points.dtype)


def draw_uniform(table: nn.Embedding) -> None:
    """Vectors uniform in [0, 1], as in the original."""
    nn.init.uniform_(table.weight)


class LearnedPositionEncoding(nn.Module):
    """One learned vector per row and per column, for at most 50 x 50 cells.

    Args:
        width: D; half of it encodes x, half y.
    """

    NUM_CELLS = 50

    def __init__(self, width: int) -> None:
        super().__init__()
        self.row_embeddings, self.column_embeddings = (
            starting(nn.Embedding(self.NUM_CELLS, width // 2), draw_uniform) for _ in range(2)
        )

    def forward(self, mask: Tensor, all_real: bool = False) -> Tensor:
        """Encode a mask (B, h, w) as (B, D, h, w), x before y; what is real doesn't matter.

        Raises:
            ValueError: if the map has more rows or columns than there are vectors.
        """
        batch_size, height, width = mask.shape
        if max(height, width) > self.NUM_CELLS:
            raise ValueError(
                f"The feature map has {height} x {width} cells, but learned positions end at "
                f"{self.NUM_CELLS}; use smaller images or position_embedding_type='sine'."
            )
        # Called, not read: Accelerate may keep the tables elsewhere until then.
        columns, rows = (torch.arange(size, device=mask.device) for size in (width, height))
        x = self.column_embeddings(columns)[None].expand(height, -1, -1)
        y = self.row_embeddings(rows)[:, None].expand(-1, width, -1)
        encoding = torch.cat([x, y], dim=-1)  # (h, w, D)
        return encoding.permute(2, 0, 1).expand(batch_size, -1, -1, -1)


def make_position_encoding(
    kind: str, width: int, offset: float = 0.0, temperature: float = 10000
) -> nn.Module:
    """The position encoding named `"sine"` or `"learned"`; the last two arguments are for sines."""
    if kind == "learned":
        return LearnedPositionEncoding(width)
    return SinePositionEncoding(width, temperature, offset)
