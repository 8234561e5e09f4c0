"""Where in a track the fixed-length segments lie that a model is shown."""

from __future__ import annotations

import hashlib


def segment_starts(n_frames: int, segment_frames: int, *, max_segments: int) -> list[int]:
    """First frames of the segments of a track, spread evenly from its start to its end.

    A track shorter than one segment has one, at 0. Otherwise it has as many as fit, rounded to
    the nearest whole number and at most `max_segments`; the first begins at the track's start
    and the last ends at its end. Nothing is random: the same track gives the same segments.

    Parameters
    ----------
    n_frames : int
        Frames of the whole track.
    segment_frames : int
        Frames of one segment.
    max_segments : int
        The paper cut 7 segments of 30 s from a song.

    Returns
    -------
    list of int
        Ascending; its length is the number of segments.

    Examples
    --------
    >>> segment_starts(1200, 1292, max_segments=7)
    [0]
    >>> segment_starts(10 * 1292, 1292, max_segments=3)
    [0, 5814, 11628]
    """
    room = max(0, n_frames - segment_frames)
    n_segments = min(max_segments, max(1, (2 * n_frames + segment_frames) // (2 * segment_frames)))
    if n_segments == 1:
        return [0]
    return [round(index * room / (n_segments - 1)) for index in range(n_segments)]


def random_starts(
    n_frames: int, segment_frames: int, *, max_segments: int, track_id: str
) -> list[int]:
    """First frames of segments at random places, which follow from the track's id alone.

    Parameters
    ----------
    n_frames : int
        Frames of the whole track.
    segment_frames : int
        Frames of one segment.
    max_segments : int
        How many; fewer only where there are not so many places.
    track_id : str

    Returns
    -------
    list of int
        Ascending, all different; they may overlap.
    """
    n_places = 1 + max(0, n_frames - segment_frames)
    starts: set[int] = set()
    draw = 0
    while len(starts) < min(max_segments, n_places):
        # Hashes, not a library's generator: the same places in every version of it.
        digest = hashlib.sha256(f"{draw}:{track_id}".encode(errors="surrogatepass")).digest()
        starts.add(int.from_bytes(digest[:8], "big") % n_places)
        draw += 1
    return sorted(starts)
