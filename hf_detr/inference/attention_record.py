"""Predictions and attention of a detector for one image, in pixels of the image.

A token is a cell of a feature level. The queries of the encoder's attention are the tokens, those
of the decoder's cross-attention are the object queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..ops.box_ops import box_cxcywh_to_xyxy

Part = Literal["all", "content", "place"]
Layers = tuple[Tensor, ...]
FEW = 4  # queries that are shown where none is above the threshold


@dataclass(frozen=True)
class SamplingPoints:
    """Sampling points of deformable attention for some queries of one layer.

    Attributes:
        positions_xy: (n, M, L, K, 2) in pixels of the image; positions outside it sample zeros.
        weights: (n, M, L, K), which sum to 1 over levels and points.
        references: (n, 2) as (x, y) or (n, 4) as (x0, y0, x1, y1) in pixels of the image.
    """

    positions_xy: Tensor
    weights: Tensor
    references: Tensor


@dataclass(frozen=True)
class AttentionRecord:
    """Predictions and attention for one image; tensors are on the CPU, floats in float32.

    Attributes:
        image: (3, H, W), uint8 or floats in [0, 1], before the image processor.
        id2label: names of the classes.
        num_queries: the detector's own queries; of Q queries those from here on are queries that
            exist in training alone, if they were asked for.
        scores, labels: (Q,), score and label of each object query's best class.
        boxes_xyxy: (Q, 4), box of each object query, in pixels of the image.
        spatial_shapes: (h, w) of each level, including padding.
        valid_ratios: (L, 2) as (w, h), the fraction of each level without padding.
        token_centers: (S, 2) as (x, y), relative to the image; greater than 1 in the padding.
        encoder_attentions: per layer (M, S, S), or (S, M, L, K) if attention is deformable.
        encoder_locations: per layer (S, M, L, K, 2) as (x, y) in [0, 1] of each padded level;
            None if attention isn't deformable.
        cross_attentions: per layer (M, Q, S), or (Q, M, L, K) if attention is deformable.
        decoder_locations: per layer (Q, M, L, K, 2), as `encoder_locations`.
        content_attentions, place_attentions: per layer (M, Q, S), cross-attention computed from
            the content queries or the spatial queries only; None except for Conditional DETR.
        reference_points: per decoder layer (Q, 2) as (x, y) or (Q, 4) as (cx, cy, w, h), relative
            to the image; None for DETR.
    """

    image: Tensor
    id2label: dict[int, str]
    num_queries: int
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
        """(2,) width and height of the image in pixels, float32."""
        return torch.tensor(self.image.shape[:0:-1], dtype=torch.float32)

    def name(self, query: int) -> str:
        """Return the class name and score of an object query as text."""
        return f"{self.id2label[int(self.labels[query])]} {self.scores[query]:.2f}"

    def best_queries(self, threshold: float = 0.5, most: int | None = None) -> list[int]:
        """Return the detector's own queries with scores above the threshold, best first.

        If there is none, return the best ones of all, at most `FEW`.
        """
        scores = self.scores[: self.num_queries]
        order = scores.argsort(descending=True)
        number = int((scores > threshold).sum()) or FEW
        return order[:number].tolist()[:most]

    def token_at(self, point_xy: Sequence[float], level: int = 0) -> int:
        """Return the index of the token whose cell contains a point of the image.

        Args:
            point_xy: in pixels of the image.
            level: the feature level.

        Raises:
            ValueError: if the point is outside the image, or the level doesn't exist.
        """
        point = torch.tensor(point_xy, dtype=torch.float32) / self.size_wh
        if not ((point >= 0) & (point <= 1)).all():
            width, height = self.size_wh.int().tolist()
            raise ValueError(
                f"The point {tuple(point_xy)} is outside the image; expected (x, y) in pixels, "
                f"within {width} x {height} (width x height)."
            )
        num_levels = len(self.spatial_shapes)
        if not 0 <= level < num_levels:
            raise ValueError(f"level is {level}; expected 0 to {num_levels - 1}.")
        sizes = [height * width for height, width in self.spatial_shapes]
        centers = self.token_centers.split(sizes)[level]
        # At the image's border, a padding cell can have the same distance.
        is_padding = (centers > 1).any(-1)
        distances = (centers - point).norm(dim=-1).masked_fill(is_padding, torch.inf)
        return sum(sizes[:level]) + int(distances.argmin())

    def encoder_maps(self, points_xy: Sequence[Sequence[float]], layer: int = -1) -> Tensor:
        """Return the encoder attention (n, M, h, w) of the tokens at n points, without padding.

        Args:
            points_xy: in pixels of the image.
            layer: index of the encoder layer.

        Raises:
            ValueError: if attention wasn't recorded or is deformable, or an argument is invalid.
        """
        weights = self._weights(self.encoder_attentions, layer, deformable=False)
        tokens = [self.token_at(point) for point in points_xy]
        return self._as_maps(weights[:, tokens].transpose(0, 1))

    def query_maps(self, queries: Sequence[int], layer: int = -1, part: Part = "all") -> Tensor:
        """Return the cross-attention (n, M, h, w) of n object queries, without padding.

        Args:
            queries: indices of object queries.
            layer: index of the decoder layer.
            part: "all", or in Conditional DETR attention computed from the "content" queries or
                the spatial queries ("place") only (Section 3.2 of the paper).

        Raises:
            ValueError: if attention wasn't recorded or is deformable, or an argument is invalid.
        """
        weights = self._weights(self.cross_attentions, layer, deformable=False)
        if part != "all":
            if self.place_attentions is None:
                raise ValueError(
                    f"part is {part!r}, but only Conditional DETR has separate content and "
                    "spatial attention. Use part='all'."
                )
            parts = {"content": self.content_attentions, "place": self.place_attentions}
            weights = parts[part][layer]
        return self._as_maps(weights[:, list(queries)].transpose(0, 1))

    def encoder_points(self, tokens: Sequence[int], layer: int = -1) -> SamplingPoints:
        """Return the sampling points of tokens in an encoder layer.

        Raises:
            ValueError: if attention wasn't recorded or isn't deformable, or the layer is invalid.
        """
        weights = self._weights(self.encoder_attentions, layer, deformable=True)
        references = self.token_centers[list(tokens)] * self.size_wh
        return self._in_pixels(self.encoder_locations[layer], weights, references, tokens)

    def query_points(self, queries: Sequence[int], layer: int = -1) -> SamplingPoints:
        """Return the sampling points of object queries in a decoder layer; raises as above."""
        weights = self._weights(self.cross_attentions, layer, deformable=True)
        references = self.reference_points[layer][list(queries)]
        if references.shape[-1] == 4:
            references = box_cxcywh_to_xyxy(references)
        references = references * self.size_wh.repeat(references.shape[-1] // 2)
        return self._in_pixels(self.decoder_locations[layer], weights, references, queries)

    def _weights(self, layers: Layers | None, layer: int, deformable: bool) -> Tensor:
        """Return one layer's weights; raise if they don't exist or are of the other kind."""
        if layers is None:
            raise ValueError(
                "Attention was not recorded; use record_attention(..., attentions=True)."
            )
        if not -len(layers) <= layer < len(layers):
            raise ValueError(
                f"layer is {layer}, but there are {len(layers)} layers; expected an index from "
                f"{-len(layers)} to {len(layers) - 1}."
            )
        if deformable and self.encoder_locations is None:
            raise ValueError(
                "Only Deformable DETR has sampling points. This model attends to all pixels: use "
                "its attention maps instead."
            )
        if not deformable and self.encoder_locations is not None:
            raise ValueError(
                "Deformable attention samples a few points and has no attention maps: use the "
                "sampling points instead."
            )
        return layers[layer]

    def _as_maps(self, weights: Tensor) -> Tensor:
        """Reshape (..., S) of the only level to (..., h, w) and cut off padding."""
        height, width = self.spatial_shapes[0]
        real = self.valid_ratios[0] * torch.tensor([width, height])
        columns, rows = real.round().int().tolist()
        return weights.unflatten(-1, (height, width))[..., :rows, :columns]

    def _in_pixels(
        self, locations: Tensor, weights: Tensor, references: Tensor, indices: Sequence[int]
    ) -> SamplingPoints:
        indices = list(indices)
        # Inverts the multiplication of reference points by the valid ratios in the model.
        positions = locations[indices] / self.valid_ratios[:, None] * self.size_wh
        return SamplingPoints(positions, weights[indices], references)
