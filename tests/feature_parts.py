"""Parts of a features table, of our own making, with a rule that a network can find."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mer_batch.audio.mel import MelParameters
from mer_batch.feature_sets import FeatureSet
from mer_batch.feature_table import features_schema
from mer_batch.schema import utc_now

#: A quarter of a second of 16 bands: 16 frames.
SMALL = FeatureSet(
    name="small",
    mel=MelParameters(
        sample_rate=8000, n_fft=128, hop_length=128, n_mels=16, fmin=0.0, fmax=4000.0
    ),
    unit="dB",
    segment_seconds=0.25,
)

#: Clips of one length, 256 frames: what the paper's networks take.
LONG = FeatureSet(name="long", mel=SMALL.mel, unit="dB", segment_seconds=4.08, fixed_length=True)

Labels = dict[str, tuple[float, float]]


def write_parts(
    folder: Path,
    n_tracks: int,
    *,
    n_parts: int = 3,
    n_segments: int = 1,
    feature_set: FeatureSet = SMALL,
    dtype: Literal["float16", "float32"] = "float16",
    row_group_size: int = 16,
    min_frames: int | None = None,
    seed: int = 0,
) -> tuple[list[str], Labels]:
    """Write parts; valence is the level of the upper bands over the lower, arousal of all."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    n_mels, length = feature_set.mel.n_mels, feature_set.segment_frames
    schema = features_schema(pa.string(), feature_set, dtype)
    upper = np.where(np.arange(n_mels) >= n_mels // 2, 1, -1)
    labels: Labels = {}
    rows: dict[str, list[object]] = {name: [] for name in schema.names}
    for track in range(n_tracks):
        valence, arousal = rng.uniform(-0.8, 0.8, 2)
        labels[f"track-{track:05}"] = (float(valence), float(arousal))
        for segment in range(n_segments):
            n_frames = int(rng.integers(min_frames or length, length + 1))
            level = -40 + 10 * arousal + 6 * valence * upper[:, None]
            mel = level + rng.normal(0, 3, (n_mels, length))
            mel[:, n_frames:] = feature_set.floor_db
            for name, value in (
                ("track_id", f"track-{track:05}"), ("audio_version", "1"),
                ("audio_uri", f"{track:05}.mp3"), ("run_id", "planted"), ("start_seconds", 0.0),
                ("duration_seconds", 1.0), ("extracted_at", utc_now()),
                ("features_id", feature_set.features_id), ("segment", segment),
                ("n_segments", n_segments), ("n_frames", n_frames),
                ("mel", mel.astype(dtype).ravel()),
            ):  # fmt: skip
                rows[name].append(value)
    mel_type = schema.field("mel").type
    flat = pa.array(np.concatenate(rows.pop("mel")), mel_type.value_type)  # type: ignore[arg-type]
    columns = {name: pa.array(values, schema.field(name).type) for name, values in rows.items()}
    columns["mel"] = pa.FixedSizeListArray.from_arrays(flat, mel_type.list_size)
    table = pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema)
    uris = []
    for part in range(n_parts):
        begin, end = len(table) * part // n_parts, len(table) * (part + 1) // n_parts
        path = folder / f"part-{part}.parquet"
        pq.write_table(table.slice(begin, end - begin), path, row_group_size=row_group_size)
        uris.append(str(path))
    return uris, labels
