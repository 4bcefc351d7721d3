"""Where a detector looked in one image, in the image's own pixels.

A token is a cell of a feature level; the encoder's queries are the tokens themselves, the decoder's
are the object queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .box_ops import box_cxcywh_to_xyxy

Part = Literal["all", "content", "place"]
Layers = tuple[Tensor, ...]


@dataclass(frozen=True)
class SamplingPoints:
    """Where deformable attention looked, for some queries of one layer.

    Attributes:
        positions_xy: (n, M, L, K, 2) in pixels of the image; beyond it they sample zeros.
        weights: (n, M, L, K), for each query and head 1 in sum over levels and points.
        references: (n, 2) as (x, y) or (n, 4) as (x0, y0, x1, y1) in pixels of the image.
    """

    positions_xy: Tensor
    weights: Tensor
    references: Tensor


@dataclass(frozen=True)
class Observation:
    """What a detector found in an image, and where it looked; tensors in float32 on the CPU.

    Attributes:
        image: (3, H, W), uint8 or floats in [0, 1], as it was before the processor.
        id2label: class label -> name.
        scores, labels: (Q,), each object query's best class.
        boxes_xyxy: (Q, 4), each object query's box, in pixels of the image.
        spatial_shapes: (h, w) of each level, padding included.
        valid_ratios: (L, 2) as (w, h), the part of each level that is no padding.
        token_centers: (S, 2) as (x, y), relative to the image; beyond 1 on padding.
        encoder_attentions: per layer (M, S, S), or (S, M, L, K) of sampling points.
        encoder_locations: per layer (S, M, L, K, 2) as (x, y) in [0, 1] of each padded level;
            None where attention isn't deformable.
        cross_attentions: per layer (M, Q, S), or (Q, M, L, K) of sampling points.
        decoder_locations: per layer (Q, M, L, K, 2), as those of the encoder.
        content_attentions, place_attentions: per layer (M, Q, S), what cross-attention would be
            if content, or place, alone were compared; None where the two aren't separate.
        reference_points: per decoder layer (Q, 2) as (x, y) or (Q, 4) as (cx, cy, w, h), relative
            to the image; None where there are none.
    """

    image: Tensor
    id2label: dict[int, str]
    scores: Tensor
    labels: Tensor
    boxes_xyxy: Tensor
    spatial_shapes: list[tuple[int, int]]
    valid_ratios: Tensor
    token_centers: Tensor
    encoder_attentions: Layers | None
    encoder_locations: Layers | None
    cross_attentions: Layers | None
    decoder_locations: Layers | None
    content_attentions: Layers | None
    place_attentions: Layers | None
    reference_points: Layers | None

    @property
    def size_wh(self) -> Tensor:
        """(2,), width and height of the image in pixels, float32."""
        return torch.tensor(self.image.shape[:0:-1], dtype=torch.float32)

    def name(self, query: int) -> str:
        """Class and score of an object query, in words."""
        return f"{self.id2label[int(self.labels[query])]} {self.scores[query]:.2f}"

    def best_queries(self, threshold: float = 0.5, most: int | None = None) -> list[int]:
        """Object queries that score above the threshold, best first.

        Raises:
            ValueError: if there is none.
        """
        order = self.scores.argsort(descending=True).tolist()
        found = [query for query in order if self.scores[query] > threshold][:most]
        if not found:
            raise ValueError(
                f"no object query scores above {threshold}, the best has "
                f"{self.scores.max():.2f}: give a lower threshold, or queries by their number."
            )
        return found

    def token_at(self, point_xy: Sequence[float], level: int = 0) -> int:
        """The token in whose cell a point of the image lies, given in pixels.

        Raises:
            ValueError: if the point is outside the image, or there is no such level.
        """
        point = torch.tensor(point_xy, dtype=torch.float32) / self.size_wh
        if not ((point >= 0) & (point <= 1)).all():
            width, height = self.size_wh.int().tolist()
            raise ValueError(
                f"the point {tuple(point_xy)} is outside the image; give (x, y) in pixels, within "
                f"{width} x {height} (width x height)."
            )
        num_levels = len(self.spatial_shapes)
        if not 0 <= level < num_levels:
            raise ValueError(f"level is {level}; the model has levels 0 to {num_levels - 1}.")
        sizes = [height * width for height, width in self.spatial_shapes]
        centers = self.token_centers.split(sizes)[level]
        # On the image's border a cell of the padding is as near.
        is_padding = (centers > 1).any(-1)
        distances = (centers - point).norm(dim=-1).masked_fill(is_padding, torch.inf)
        return sum(sizes[:level]) + int(distances.argmin())

    def encoder_maps(self, points_xy: Sequence[Sequence[float]], layer: int = -1) -> Tensor:
        """Where the tokens at some points look, (n, M, h, w): cells of the image, no padding.

        Args:
            points_xy: in pixels of the image.
            layer: of the encoder.

        Raises:
            ValueError: if attention wasn't observed or is deformable, or for wrong arguments.
        """
        weights = _layer(self.encoder_attentions, layer)
        self._check_kind(deformable=False)
        tokens = [self.token_at(point) for point in points_xy]
        return self._as_maps(weights[:, tokens].transpose(0, 1))

    def query_maps(self, queries: Sequence[int], layer: int = -1, part: Part = "all") -> Tensor:
        """Where object queries look, (n, M, h, w): cells of the image, without padding.

        Args:
            queries: by their number.
            layer: of the decoder.
            part: "all", or what "content" or "place" alone would give where a model compares them
                separately (Conditional DETR, Section 3.2: content and spatial attention).

        Raises:
            ValueError: as above, and where content and place aren't separate.
        """
        weights = _layer(self.cross_attentions, layer)
        self._check_kind(deformable=False)
        if part != "all":
            if self.place_attentions is None:
                raise ValueError(
                    "this model's cross-attention adds content and place before it compares them; "
                    "only Conditional DETR's has parts of its own. Use part='all'."
                )
            parts = {"content": self.content_attentions, "place": self.place_attentions}
            weights = _layer(parts[part], layer)
        return self._as_maps(weights[:, list(queries)].transpose(0, 1))

    def encoder_points(self, tokens: Sequence[int], layer: int = -1) -> SamplingPoints:
        """Where tokens sample the levels in a layer of the encoder.

        Raises:
            ValueError: if attention wasn't observed, or isn't deformable.
        """
        weights = _layer(self.encoder_attentions, layer)
        self._check_kind(deformable=True)
        references = self.token_centers[list(tokens)] * self.size_wh
        return self._in_pixels(self.encoder_locations[layer], weights, references, tokens)

    def query_points(self, queries: Sequence[int], layer: int = -1) -> SamplingPoints:
        """Where object queries sample the levels in a layer of the decoder.

        Raises:
            ValueError: if attention wasn't observed, or isn't deformable.
        """
        weights = _layer(self.cross_attentions, layer)
        self._check_kind(deformable=True)
        references = self.reference_points[layer][list(queries)]
        if references.shape[-1] == 4:
            references = box_cxcywh_to_xyxy(references)
        references = references * self.size_wh.repeat(references.shape[-1] // 2)
        return self._in_pixels(self.decoder_locations[layer], weights, references, queries)

    def _check_kind(self, deformable: bool) -> None:
        if deformable and self.encoder_locations is None:
            raise ValueError(
                "this model attends to all pixels and has no sampling points; those are Deformable "
                "DETR's. Draw its attention maps instead."
            )
        if not deformable and self.encoder_locations is not None:
            raise ValueError(
                "this model's attention is deformable: it looks at some points, and has no map of "
                "all pixels. Draw its sampling points instead."
            )

    def _as_maps(self, weights: Tensor) -> Tensor:
        """(..., S) of the one level -> (..., h, w) without padding."""
        height, width = self.spatial_shapes[0]
        real = self.valid_ratios[0] * torch.tensor([width, height])
        columns, rows = real.round().int().tolist()
        return weights.unflatten(-1, (height, width))[..., :rows, :columns]

    def _in_pixels(
        self, locations: Tensor, weights: Tensor, references: Tensor, indices: Sequence[int]
    ) -> SamplingPoints:
        indices = list(indices)
        # The inverse of how references reach the levels, so that both can be drawn together.
        positions = locations[indices] / self.valid_ratios[:, None] * self.size_wh
        return SamplingPoints(positions, weights[indices], references)


def _layer(layers: Layers | None, index: int) -> Tensor:
    if layers is None:
        raise ValueError("attention was not observed; use observe(..., attentions=True).")
    if not -len(layers) <= index < len(layers):
        raise ValueError(f"layer is {index}; there are {len(layers)}, the last one is -1.")
    return layers[index]
