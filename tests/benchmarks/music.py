"""The files that are measured with, and what our kernel says of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch.audio.decode import AudioLimits
from mer_batch.checkpoint import builtin_checkpoint
from mer_batch.compose import MOODS, compose, encode_mp3
from mer_batch.extract import Extractor
from mer_batch.score import Scorer

#: Short names of the kinds of files, as on the command line, and what the report calls them.
KINDS = {
    "genres": "30-s clips of 17 genres, mono, 80 kbit/s",
    "film": "film music, 10 to 37 s, stereo, 192 kbit/s",
    "composed": "composed 30-s pieces, stereo",
}
_FOLDERS = {"genres": "musifeast17", "film": "soundtracks"}


def kinds_there() -> list[str]:
    """The kinds that there are files of: all with research data, else the composed pieces alone."""
    return [kind for kind in KINDS if kind not in _FOLDERS or _real_music(kind)]


def files_of(kind: str, scratch: Path) -> list[Path]:
    """The files of a kind; composed pieces are made in `scratch`."""
    return _real_music(kind) if kind in _FOLDERS else _composed(scratch)


def _real_music(kind: str) -> list[Path]:
    data = os.environ.get("MER_BATCH_DATA")
    return sorted(Path(data, _FOLDERS[kind], "audio").glob("*.mp3")) if data else []


def _composed(scratch: Path) -> list[Path]:
    composed = []
    for mood in MOODS:
        for seed in range(6):
            left, right = (compose(mood, 2 * seed + side, seconds=30) for side in (0, 1))
            path = scratch / f"{mood}-{seed}.mp3"
            path.write_bytes(encode_mp3(np.stack([left, right], axis=1), quality=0.6))
            composed.append(path)
    return composed


def spread(clips: list[Path], folder: Path, n_tracks: int) -> list[str]:
    """The same clips again and again under distinct names."""
    folder.mkdir()
    for number in range(n_tracks):
        (folder / f"{number:06}.mp3").symlink_to(clips[number % len(clips)])
    return [str(path) for path in sorted(folder.iterdir())]


@dataclass(frozen=True)
class Music:
    """Tracks of one kind, as a folder and as a list.

    Attributes
    ----------
    kind : str
    folder : Path
        Of audio, one file a track.
    listing : Path
        Parquet: ``track_id``, the file's name without its ending, and ``path``.
    n_tracks : int
    scores : float64, shape (n_tracks, 2)
        Valence and arousal by our kernel, in the order of ``track_id``.
    audio_seconds : float
        Of all tracks together.
    """

    kind: str
    folder: Path
    listing: Path
    n_tracks: int
    scores: np.ndarray
    audio_seconds: float


class Clips:
    """Clips of one kind, decoded and scored once: what every job's scores are held against.

    Parameters
    ----------
    kind : str
    paths : list of Path
    """

    def __init__(self, kind: str, paths: list[Path]) -> None:
        self.kind, self._paths = kind, paths
        checkpoint = builtin_checkpoint()
        extractor = Extractor(checkpoint.feature_set, AudioLimits())
        scorer = Scorer(checkpoint.function())
        tracks = [extractor.extract(path.read_bytes()) for path in paths]
        self._scores = np.array([scorer.score(track.segments).mean for track in tracks])
        self._seconds = np.array([track.duration_seconds for track in tracks])

    def music(self, scratch: Path, n_tracks: int) -> Music:
        """So many tracks, made of these clips."""
        folder = scratch / f"{self.kind}-{n_tracks}"
        paths = spread(self._paths, folder, n_tracks)
        listing = folder.with_suffix(".parquet")
        ids = [Path(path).stem for path in paths]
        pq.write_table(pa.table({"track_id": ids, "path": paths}), listing)
        clip = np.arange(n_tracks) % len(self._paths)
        seconds = float(self._seconds[clip].sum())
        return Music(self.kind, folder, listing, n_tracks, self._scores[clip], seconds)
