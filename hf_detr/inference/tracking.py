"""Ids that objects keep from frame to frame of a video, by ByteTrack of the library `trackers`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NO_TRACK = -1
STARTING = 0.5  # what the library gets for a score of the threshold


class ObjectTracker:
    """Gives the objects in consecutive frames ids, by their boxes alone.

    An object with a score of at least `threshold` starts a track, and gets its id in the next frame
    if it is found again. Of what no track started with, objects down to `lowest_score`, half of the
    threshold, can continue a track: objects that others partly hide have low scores. A track that
    isn't continued for a second ends, and its id isn't used again.

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
        self._tracker = ByteTrackTracker(
            frame_rate=frame_rate,
            track_activation_threshold=STARTING,
            high_conf_det_threshold=STARTING,
        )

    def update(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """Continue with the next frame.

        Args:
            result: of `predict` for the frame, with `lowest_score` as its threshold.

        Returns:
            The result with the objects that reach the threshold or continue a track, and their
            `track_ids` (n,) int64, -1 for those without a track.
        """
        from supervision import Detections

        scores, threshold = result["scores"], torch.as_tensor(self.threshold)
        threshold = threshold[result["labels"]] if threshold.ndim else threshold
        confidence = (scores / threshold.clamp(min=1e-6) * STARTING).clamp(max=1)
        found = Detections(
            xyxy=result["boxes"].float().numpy(),
            confidence=confidence.float().numpy(),
            data={"index": torch.arange(len(scores)).numpy()},
        )
        tracked = self._tracker.update(found)
        track_ids = torch.full((len(scores),), NO_TRACK)
        if len(tracked):
            track_ids[tracked.data["index"]] = torch.from_numpy(tracked.tracker_id).long()
        is_kept = (track_ids != NO_TRACK) | (scores >= threshold)
        kept = {key: result[key][is_kept] for key in ("scores", "labels", "boxes")}
        return {**result, **kept, "track_ids": track_ids[is_kept]}
