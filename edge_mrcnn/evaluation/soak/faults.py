"""What goes wrong in a soak, and when: the same for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

HTTP_FAULTS = {
    "die": "a camera breaks off every connection and is gone for a while",
    "refuse": "a camera answers that it has no time",
    "stall": "a camera stays connected and sends nothing, long enough to count as lost",
    "hiccup": "a camera sends nothing for a moment",
    "cut": "a picture ends in its middle",
    "garbage": "a camera sends noise in place of a picture",
    "resize": "a camera changes its resolution",
    "burst": "a camera sends eight pictures at once",
}
RTSP_FAULTS = {"rtsp-die": "the RTSP server is killed and comes back", "rtsp-stall": "the RTSP server is stopped"}
CLIENT_FAULTS = {
    "deaf": "a client asks the page for a stream and never reads it",
    "rude": "a client of the page breaks off in the middle",
}
SINK_FAULTS = {"block-record": "a sink that records blocks", "block-view": "a view blocks"}

EVERY_S = 4.0
"""Between two faults, on average."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: When it begins, from the beginning of the soak.
        kind: Of the tables above.
        camera: Which camera of those over HTTP.
        seconds: How long it lasts; of no matter to those that come with one picture.
    """

    at_s: float
    kind: str
    camera: int
    seconds: float


def plan_faults(seed: int, soak_s: float, cameras: int, *, timeout_s: float, rtsp: bool) -> list[Fault]:
    """All faults of a soak, in order of time. Each kind comes once before any comes again.

    It begins with a quiet moment and ends with a longer one, in which every camera can come back.

    Example:
        >>> faults = plan_faults(7, 120.0, 3, timeout_s=2.0, rtsp=False)
        >>> faults == plan_faults(7, 120.0, 3, timeout_s=2.0, rtsp=False)
        True
        >>> len({fault.kind for fault in faults})
        12
    """
    rng = random.Random(seed)
    kinds = [*HTTP_FAULTS, *(RTSP_FAULTS if rtsp else ()), *CLIENT_FAULTS, *SINK_FAULTS]
    begin_s, end_s = 0.05 * soak_s, soak_s - quiet_s(soak_s)
    every_s = min(EVERY_S, (end_s - begin_s) / (len(kinds) + 2))
    faults: list[Fault] = []
    deck: list[str] = []
    at_s = begin_s
    while at_s < end_s:
        deck = deck or rng.sample(kinds, len(kinds))
        kind = deck.pop()
        seconds = _duration_s(rng, kind, timeout_s)
        faults.append(Fault(at_s, kind, rng.randrange(cameras), min(seconds, soak_s / 10)))
        at_s += every_s * rng.uniform(0.5, 1.5)
    return faults


def quiet_s(soak_s: float) -> float:
    """How long before the end the last fault begins: a camera may be waiting for its fourth attempt, 8 s."""
    return min(30.0, soak_s / 3)


def _duration_s(rng: random.Random, kind: str, timeout_s: float) -> float:
    if kind == "hiccup":
        return rng.uniform(0.2, 0.7) * timeout_s
    if kind in ("stall", "rtsp-stall"):
        return rng.uniform(1.3, 3) * timeout_s
    return rng.uniform(1, 8)
