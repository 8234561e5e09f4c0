"""Columns of the ``features/`` table, and mels out of its rows.

To be replaced at merge by the module that extraction brings; only these two names are used.
"""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mer_batch.feature_sets import FeatureSet


def features_schema(feature_set: FeatureSet, dtype: pa.DataType) -> pa.Schema:
    """Columns of a part; the mel lies band by band, in dB."""
    n_values = feature_set.mel.n_mels * feature_set.segment_frames
    shape = {"shape": ["n_mels", "n_frames"], "n_mels": feature_set.mel.n_mels}
    return pa.schema(
        [
            pa.field("track_id", pa.string()),
            pa.field("audio_version", pa.string()),
            pa.field("features_id", pa.string()),
            pa.field("segment", pa.int32()),
            pa.field("n_segments", pa.int32()),
            pa.field("n_frames", pa.int32()),
            pa.field("mel", pa.list_(dtype, n_values)),
        ],
        metadata={"mel": json.dumps(shape)},
    )


def mels(batch: pa.RecordBatch, feature_set: FeatureSet) -> npt.NDArray[np.float32]:
    """Mels of some rows: float32, shape (n, n_mels, segment_frames), in the set's unit."""
    values = batch.column("mel").flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    decibels: npt.NDArray[np.float32] = values.reshape(len(batch), feature_set.mel.n_mels, feature_set.segment_frames)
    if feature_set.unit == "dB":
        return decibels
    return np.exp(decibels * np.float32(np.log(10) / 10), dtype=np.float32)
