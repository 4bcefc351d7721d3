"""Ids that objects keep from frame to frame of a video, by ByteTrack of the library `trackers`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

NO_TRACK = -1
STARTING = 0.5  # what the library gets for a score of the threshold


class ObjectTracker:
    """Gives the objects in consecutive frames ids, by their boxes and classes.

    An object with a score of at least `threshold` starts a track, and gets its id in the next frame
    if it is found again. Of what no track started with, objects down to `lowest_score`, half of the
    threshold, can continue a track: objects that others partly hide have low scores. A track that
    isn't continued for a second ends, and its id isn't used again. No object continues the track of
    another class, so one whose class changes in every frame has none.

    Args:
        threshold: lowest score that starts a track, or one for each label (C,). DETR's scores are
            often between 0.3 and 0.7, and the library's own default of 0.7 then starts none.
        frame_rate: frames per second, which are taken as equally distant.

    Attributes:
        lowest_score: the threshold for `predict`; for each label if `threshold` is.

    Raises:
        ImportError: if the library isn't installed.
    """

    def __init__(self, threshold: float | Tensor = 0.5, frame_rate: float = 30.0) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise ImportError(
                "Tracking needs trackers; install it with pip install 'hf_detr[track]'."
            ) from error
        self.threshold, self.lowest_score = threshold, threshold / 2
        self._make_tracker = partial(
            ByteTrackTracker,
            frame_rate=frame_rate,
            track_activation_threshold=STARTING,
            high_conf_det_threshold=STARTING,
        )
        # The library doesn't compare classes. Its ids start from 0 in each tracker.
        self._trackers: dict[int, Any] = {}  # of each class that was found
        self._ids: dict[tuple[int, int], int] = {}  # of a class and its tracker's id

    def update(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Continue with the next frame.

        Args:
            result: of `predict` for the frame, with `lowest_score` as its threshold.

        Returns:
            The result with the objects that reach the threshold or continue a track, and their
            `track_ids` (n,) int64, -1 for those without a track.
        """
        scores, labels = result["scores"], result["labels"]
        threshold = torch.as_tensor(self.threshold)
        threshold = threshold[labels] if threshold.ndim else threshold
        confidence = (scores / threshold.clamp(min=1e-6) * STARTING).clamp(max=1)
        for label in labels.unique().tolist():
            if label not in self._trackers:
                self._trackers[label] = self._make_tracker()
        track_ids = torch.full((len(scores),), NO_TRACK)
        # Also of classes that this frame doesn't have, whose tracks get older.
        for label, tracker in self._trackers.items():
            indices = (labels == label).nonzero()[:, 0]
            own_ids = _update(tracker, result["boxes"][indices], confidence[indices])
            for index, own in zip(indices.tolist(), own_ids, strict=True):
                if own != NO_TRACK:
                    track_ids[index] = self._ids.setdefault((label, own), len(self._ids))
        is_kept = (track_ids != NO_TRACK) | (scores >= threshold)
        kept = {key: result[key][is_kept] for key in ("scores", "labels", "boxes")}
        return {**result, **kept, "track_ids": track_ids[is_kept]}


def _update(tracker: Any, boxes: Tensor, confidence: Tensor) -> list[int]:
    """Continue a tracker with boxes (n, 4); return the id of each."""
    from supervision import Detections

    found = Detections(
        xyxy=boxes.float().numpy(),
        confidence=confidence.float().numpy(),
        data={"index": torch.arange(len(boxes)).numpy()},
    )
    tracked, ids = tracker.update(found), [NO_TRACK] * len(boxes)
    if len(tracked):
        for index, own in zip(tracked.data["index"].tolist(), tracked.tracker_id, strict=True):
            ids[index] = int(own)
    return ids
