"""Tracking: the same number for the same thing, from frame to frame."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_mrcnn.detections import Detections
from edge_mrcnn.runtime import tracker_motion as motion
from edge_mrcnn.runtime.tracker_assignment import Array, Rows, assign, pairwise_iou
from edge_mrcnn.runtime.tracker_duplicates import find_duplicates

Mask = npt.NDArray[np.bool_]

_TRACK = np.dtype(
    [
        ("number", np.int64),  # what is given out; 0 until the track is confirmed
        ("trust", np.float64),  # what speaks for it, see `TrackerOptions.confirm`
        ("seen_ns", np.int64),  # when it was seen last
        ("class_id", np.int64),
        ("class_weight", np.float64),  # how sure the class is, in scores
        *motion.MOTION,
    ]
)

_FRAME_NS = 33_333_333
"""From frame to frame where nobody says."""

_MIN_IOU, _MIN_IOU_WEAK = 0.2, 0.35
"""A detection may continue a track whose predicted box it overlaps by this much; a weak one must fit better."""

_OTHER_CLASS = 0.5
"""Taken off the IoU where the class differs: a network may change its opinion, but not often."""

_REACH, _REACH_PER_S = 1.0, 1.0
"""How far from where it was expected a thing of the same class is looked for, in sizes of the thing, and how much
farther for every second that it was out of sight."""

_MAX_SIZE_RATIO = 4.0
"""Nor may it have grown or shrunk by more than this, as what is half hidden does."""

_SAME_BOX = 0.8
"""Boxes with this IoU are taken to show the same thing: of two things in one place, one hides the other."""

_FIRST_TRUST = 0.4
"""Spoken for by being there in the first frame: all is new then, whereas later most things are known already."""

_MAX_CLASS_WEIGHT = 5.0
"""So many scores of another class, in a row, change the class of an old track."""

_MOST_TRACKS = 1000
"""Tracks remembered; beyond it the ones unseen for longest go, whatever the clock says."""


WEAK_SCORE = 0.1
"""Detections down to this score are worth showing to a tracker: where a thing was, a weak one is most likely it."""


@dataclass(frozen=True)
class TrackerOptions:
    """How things are tracked."""

    lost_s: float = 2.0
    """A thing that was out of sight for longer gets a new number."""

    start_score: float = 0.5
    """Detections with a lower score begin no track; they may continue one."""

    confirm: float = 1.2
    """A thing gets its number once its scores, counted from 0 at `start_score` to 1 for certainty, add up to this: in
    its second frame where the network is sure, later where it doubts. 0.4 less is asked of what is there in the first
    frame of all. 0 gives a number at once."""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: A field is out of range; the message names it.
        """
        if not 0 < self.lost_s < float("inf"):
            raise ValueError(f"TrackerOptions.lost_s must be positive, got {self.lost_s}")
        if not 0 <= self.start_score < 1:
            raise ValueError(f"TrackerOptions.start_score must be from 0 to below 1, got {self.start_score}")
        if not 0 <= self.confirm < float("inf"):
            raise ValueError(f"TrackerOptions.confirm must be 0 or more, got {self.confirm}")


class Tracker:
    """Numbers the things that one camera sees.

    A Kalman filter says where each thing should be now. Detections continue the tracks whose expected boxes they
    overlap, confident ones first; what is left looks for a lost track of its class nearby. Tracks without a number yet
    take what those with one leave. A detection whose mask lies inside a better one, or that has its box, is taken for a
    second view of the same thing and gets no number of its own.

    Only boxes, masks, scores and classes are looked at, never pixels; the same calls always give the same numbers.

    Example:
        >>> tracker = Tracker(TrackerOptions(confirm=0))
        >>> box = np.array([[10, 10, 50, 50]], np.float32)
        >>> seen = Detections(box, np.ones(1, np.float32), np.ones(1, np.int32), (480, 640))
        >>> tracker.update(seen, 0).track_id, tracker.update(seen, 40_000_000).track_id
        (array([1], dtype=int32), array([1], dtype=int32))

    Source: the two stages of scores are from Zhang et al., ByteTrack: Multi-Object Tracking by Associating Every
    Detection Box (2022).
    """

    def __init__(self, options: TrackerOptions | None = None) -> None:
        """Begin with nothing tracked; the first number will be 1."""
        self.options = options or TrackerOptions()
        self._tracks = np.zeros(0, _TRACK)
        self._last_number = 0
        self._now_ns: int | None = None  # None before the first frame

    def update(self, detections: Detections, frame_time_ns: int | None = None) -> Detections:
        """Number the detections of the next frame.

        Args:
            detections: Of one frame, in any order.
            frame_time_ns: When the frame was taken, by any clock that stays the same from frame to frame; without it
                1/30 s after the one before. Frames may be missing; after a leap of more than `lost_s`, forwards or
                backwards, everything begins anew.

        Returns:
            The same detections in the same order with `track_id`: 1 and up, never used again, or 0 for what is not
            confirmed, is a second view of something else, or has no sound box.
        """
        first = self._now_ns is None
        self._advance(frame_time_ns)
        found = _Found(detections, self.options.start_score)
        confirmed = self._tracks["number"] > 0
        for wanted in (confirmed, ~confirmed):
            self._match_overlap(found, found.strong, wanted, _MIN_IOU)
            found.drop_weak_twins()
            self._match_overlap(found, found.weak, wanted, _MIN_IOU_WEAK)
            self._match_nearby(found, wanted)
        self._drop_twins(found)
        self._drop_duplicates(found)
        rows = np.flatnonzero(found.owner >= 0)
        seen = self._continue(found, rows)
        fresh_rows = found.free(found.strong)
        fresh = self._begin(found, fresh_rows, first)
        hidden = self._tracks["number"] > 0
        hidden[found.owner[rows]] = False
        self._tracks = np.concatenate([self._tracks[hidden], seen, fresh])
        numbers = np.zeros(len(detections), np.int32)
        numbers[rows], numbers[fresh_rows] = seen["number"], fresh["number"]
        return replace(detections, track_id=numbers)

    def _advance(self, frame_time_ns: int | None) -> None:
        """Move every track to the time of the frame; forget those lost for too long."""
        if frame_time_ns is None:
            frame_time_ns = 0 if self._now_ns is None else self._now_ns + _FRAME_NS
        last_ns, self._now_ns = self._now_ns, frame_time_ns
        unseen_ns = np.abs(frame_time_ns - self._tracks["seen_ns"])
        self._tracks = self._tracks[unseen_ns <= self.options.lost_s * 1e9]
        if len(self._tracks) > _MOST_TRACKS:
            newest = np.argsort(-self._tracks["seen_ns"], kind="stable")[:_MOST_TRACKS]
            self._tracks = self._tracks[np.sort(newest)]
        if last_ns is not None:
            motion.hold_sizes(self._tracks, self._tracks["seen_ns"] != last_ns)
            motion.predict(self._tracks, max(frame_time_ns - last_ns, 0) * 1e-9)

    def _match_overlap(self, found: _Found, choice: Mask, wanted: Mask, min_iou: float) -> None:
        """Give the free detections of `choice` to the wanted tracks whose expected boxes they overlap."""
        rows, tracks = found.free(choice), found.free_tracks(wanted)
        if not len(rows) or not len(tracks):
            return
        candidates = self._tracks[tracks]
        cost = 1 - pairwise_iou(motion.to_xyxy(candidates["place"]), found.xyxy[rows])
        cost += _OTHER_CLASS * (candidates["class_id"][:, None] != found.class_id[rows])
        chosen, given = assign(cost, 1 - min_iou)
        found.owner[rows[given]] = tracks[chosen]

    def _match_nearby(self, found: _Found, wanted: Mask) -> None:
        """Give free confident detections to wanted tracks of their class: what leapt, or comes back."""
        rows, tracks = found.free(found.strong), found.free_tracks(wanted)
        if not len(rows) or not len(tracks):
            return
        candidates, place = self._tracks[tracks], found.place[rows]
        size, found_size = motion.sizes(candidates["place"]), motion.sizes(place)
        away = np.hypot(*(candidates["place"][:, None, axis] - place[:, axis] for axis in (0, 1)))
        unseen_s = np.abs(self._now_ns - candidates["seen_ns"])[:, None] * 1e-9
        cost = away / (np.maximum(size, found_size.T) * (_REACH + _REACH_PER_S * unseen_s))
        ratio = size / found_size.T
        unlike = (ratio > _MAX_SIZE_RATIO) | (ratio < 1 / _MAX_SIZE_RATIO)
        cost[unlike | (candidates["class_id"][:, None] != found.class_id[rows])] = np.inf
        chosen, given = assign(cost, 1.0)
        found.owner[rows[given]] = tracks[chosen]

    def _drop_twins(self, found: _Found) -> None:
        """Of two confirmed tracks on the same thing, leave it to the one that more speaks for; the other is hidden."""
        rows = np.flatnonzero(found.owner >= 0)
        rows = rows[self._tracks["number"][found.owner[rows]] > 0]
        rows = rows[np.argsort(-self._tracks["trust"][found.owner[rows]], kind="stable")]
        same = pairwise_iou(found.xyxy[rows], found.xyxy[rows]) >= _SAME_BOX
        twins = rows[np.triu(same, 1).any(axis=0)]
        found.owner[twins] = -1
        found.strong[twins] = False

    def _drop_duplicates(self, found: _Found) -> None:
        """Mark second views of the same thing, so that they begin and confirm no track."""
        firm = found.owner >= 0
        firm[firm] = self._tracks["number"][found.owner[firm]] > 0
        loose = np.flatnonzero(found.strong & ~firm)
        if not len(loose):
            return
        loose = loose[np.argsort(-found.score[loose], kind="stable")]
        twice = find_duplicates(found.detections, loose, np.flatnonzero(firm))
        found.owner[twice] = -1
        found.strong[twice] = False

    def _continue(self, found: _Found, rows: Rows) -> npt.NDArray[np.void]:
        """The tracks that the detections `rows` belong to, as they are now."""
        seen = self._tracks[found.owner[rows]]
        motion.correct(seen, found.place[rows])
        agrees = seen["class_id"] == found.class_id[rows]
        weight = seen["class_weight"] + np.where(agrees, 1.0, -1.0) * found.score[rows]
        seen["class_id"] = np.where(weight < 0, found.class_id[rows], seen["class_id"])
        seen["class_weight"] = np.minimum(np.abs(weight), _MAX_CLASS_WEIGHT)
        seen["seen_ns"] = self._now_ns
        return self._confirm(seen, found.score[rows])

    def _begin(self, found: _Found, rows: Rows, first: bool) -> npt.NDArray[np.void]:
        """New tracks for the detections `rows`."""
        fresh = np.zeros(len(rows), _TRACK)
        motion.start(fresh, found.place[rows])
        fresh["seen_ns"] = self._now_ns
        fresh["class_id"], fresh["class_weight"] = found.class_id[rows], found.score[rows]
        fresh["trust"] = _FIRST_TRUST if first else 0.0
        return self._confirm(fresh, found.score[rows])

    def _confirm(self, tracks: npt.NDArray[np.void], score: npt.NDArray[np.float32]) -> npt.NDArray[np.void]:
        """Count the scores of their newest detections, and give numbers to the tracks that earn one now."""
        start = self.options.start_score
        tracks["trust"] += (score - start) / (1 - start)
        due = (tracks["number"] == 0) & (tracks["trust"] >= self.options.confirm)
        tracks["number"][due] = self._last_number + 1 + np.arange(np.count_nonzero(due))
        self._last_number += int(np.count_nonzero(due))
        return tracks


class _Found:
    """The detections of a frame while they look for their tracks.

    Attributes:
        detections: As they came.
        xyxy: `(N, 4)` float64.
        place: `(N, 4)`: centre x, y, width, height.
        score: `(N,)`.
        class_id: `(N,)`.
        strong: `(N,)` bool: may begin a track.
        weak: `(N,)` bool: may only continue one.
        owner: `(N,)`: row of the track that each belongs to, -1 for none so far.
    """

    def __init__(self, detections: Detections, start_score: float) -> None:
        self.detections = detections
        self.xyxy: Array = detections.xyxy.astype(np.float64)
        sound = np.isfinite(self.xyxy).all(axis=1) & np.isfinite(detections.score)
        sound &= (self.xyxy[:, 2:] > self.xyxy[:, :2]).all(axis=1)
        self.place = motion.to_place(self.xyxy)
        self.score = detections.score
        self.class_id = detections.class_id
        self.strong = sound & (detections.score >= start_score)
        self.weak = sound & ~self.strong
        self.owner = np.full(len(detections), -1)

    def drop_weak_twins(self) -> None:
        """Leave out free weak detections that show again what a track has."""
        rows, weak = np.flatnonzero(self.owner >= 0), np.flatnonzero(self.weak & (self.owner < 0))
        same = pairwise_iou(self.xyxy[weak], self.xyxy[rows]) >= _SAME_BOX
        self.weak[weak[same.any(axis=1)]] = False

    def free(self, wanted: Mask) -> Rows:
        """Rows of the wanted detections without a track."""
        return np.flatnonzero(wanted & (self.owner < 0))

    def free_tracks(self, wanted: Mask) -> Rows:
        """Those of the wanted tracks that have no detection."""
        free = wanted.copy()
        free[self.owner[self.owner >= 0]] = False
        return np.flatnonzero(free)
