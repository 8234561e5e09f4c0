"""The words on disk: targets, reject reasons, and the columns of every table."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import dataclass

import pyarrow as pa

#: The order of the two scores, everywhere: model outputs, cards, columns.
TARGETS = ("valence", "arousal")

#: Why a track was not scored. A closed list: consumers may switch on it.
REASONS: dict[str, str] = {
    "not_found": "no file or object at the URI",
    "access_denied": "the store refused to hand it out",
    "storage_error": "throttled, reset or failing store, after all retries (transient)",
    "too_large": "more bytes than audio.max_bytes",
    "empty": "zero bytes",
    "not_audio": "no audio stream found in the bytes, or not a regular file",
    "unsupported_codec": "audio or video of a kind the decoder does not read",
    "truncated": "ends before the length that the file or the catalog promises",
    "too_short": "shorter than audio.min_seconds",
    "too_long": "longer than audio.max_seconds",
    "silent": "nothing but silence, after the mix to mono",
    "not_finite": "samples or scores that are NaN or infinite",
    "decode_error": "the decoder gave up, or its output does not match the stream",
    "decoder_crash": "the decoder's process died",
    "timeout": "decoding took longer than audio.timeout_seconds",
    "memory_limit": "decoding wanted more memory than audio.memory_bytes",
}

#: Faults that pass: the next run tries these tracks again by itself.
TRANSIENT_REASONS = frozenset({"storage_error", "access_denied"})

#: Faults that may be the machine's: held against a track only when it fails so a second time.
#: Of these, ``attempts`` counts no others.
DOUBTFUL_REASONS = frozenset({"decoder_crash", "timeout", "memory_limit"})

#: Audio that was there when the night was planned and could not be found then: it may have been
#: gone for a moment, as when a disk is mounted anew. As doubtful as those.
VANISHED_REASON = "not_found"


def is_doubtful(reason: str, audio_version: str) -> bool:
    """Whether a reject may be the machine's fault; `audio_version` is that of the plan, or ""."""
    return reason in DOUBTFUL_REASONS or (reason == VANISHED_REASON and audio_version != "")


_TIME = pa.timestamp("us", tz="UTC")

#: Where the true value lies for nine tracks in ten; null from a model that cannot say.
INTERVAL_FIELDS = tuple(
    pa.field(f"{target}_{end}", pa.float32()) for target in TARGETS for end in ("low", "high")
)

#: What a model gives for a track, in ``scores/``.
SCORE_COLUMNS = (
    *TARGETS,
    *(f"{target}_std" for target in TARGETS),
    *(field.name for field in INTERVAL_FIELDS),
    "n_segments",
    "duration_seconds",
)


@dataclass(frozen=True)
class Identity:
    """What a score depends on besides the audio.

    Attributes
    ----------
    features_id, model_id : str
        Of the feature set with its decoder, and of the weights with the intervals of their card.
    extraction_id : str
        Of the feature set and the audio limits: what a reject depends on.
    """

    features_id: str
    model_id: str
    extraction_id: str

    @classmethod
    def of(cls, features_id: str, model_id: str, limits: dict[str, object]) -> Identity:
        """With the id of the extraction under these limits."""
        return cls(features_id, model_id, content_id({"features_id": features_id, **limits}))


def scores_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of ``scores/``: one row per (track_id, audio_version, features_id, model_id)."""
    return pa.schema(
        [
            pa.field("track_id", id_type, nullable=False),
            pa.field("audio_uri", pa.string()),
            pa.field("audio_version", pa.string(), nullable=False),
            pa.field("valence", pa.float32()),
            pa.field("arousal", pa.float32()),
            pa.field("valence_std", pa.float32()),
            pa.field("arousal_std", pa.float32()),
            *INTERVAL_FIELDS,
            pa.field("n_segments", pa.int32()),
            pa.field("duration_seconds", pa.float64()),
            pa.field("features_id", pa.string(), nullable=False),
            pa.field("model_id", pa.string(), nullable=False),
            pa.field("run_id", pa.string()),
            pa.field("scored_at", _TIME),
        ]
    )


def features_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of ``features/``: one row per segment.

    This is what the Delta log says. It knows neither half floats nor lists of a fixed size, so
    ``mel`` stands there as a list of floats; a part's own schema is ``feature_table``'s.
    """
    return pa.schema(
        [
            pa.field("track_id", id_type, nullable=False),
            pa.field("segment", pa.int32(), nullable=False),
            pa.field("start_seconds", pa.float64()),
            pa.field("n_segments", pa.int32(), nullable=False),
            pa.field("n_frames", pa.int32(), nullable=False),
            pa.field("duration_seconds", pa.float64()),
            pa.field("audio_uri", pa.string()),
            pa.field("audio_version", pa.string(), nullable=False),
            pa.field("features_id", pa.string(), nullable=False),
            pa.field("run_id", pa.string()),
            pa.field("extracted_at", _TIME, nullable=False),
            pa.field("mel", pa.list_(pa.float32())),
        ]
    )


def rejects_schema(id_type: pa.DataType) -> pa.Schema:
    """Columns of ``rejects/``: one row per track that could not be scored, or not be extracted.

    ``extraction_id`` names the feature set, decoder and limits that the track was tried under: a
    permanent reject is tried again when one of them, or the audio, has changed. ``product`` is
    what could not be made of it: a track has one row for ``scores``, and one for ``features`` under
    every ``extraction_id``.
    """
    return pa.schema(
        [
            pa.field("track_id", id_type, nullable=False),
            pa.field("audio_uri", pa.string()),
            pa.field("audio_version", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("message", pa.string()),
            pa.field("attempts", pa.int32()),
            pa.field("first_run_id", pa.string()),
            pa.field("last_run_id", pa.string()),
            pa.field("first_seen", _TIME),
            pa.field("last_seen", _TIME),
            pa.field("extraction_id", pa.string(), nullable=False),
            pa.field("product", pa.string()),
        ]
    )


#: The tables of an output by name, and their columns by the type of the catalog's ids.
SCHEMAS = {"scores": scores_schema, "features": features_schema, "rejects": rejects_schema}


def reject_rows(rows: list[dict[str, object]], id_type: pa.DataType) -> pa.Table:
    """Rows for ``Ledger.merge_rejects`` out of dictionaries."""
    return pa.Table.from_pylist(rows, schema=rejects_schema(id_type))


#: What ``enriched/`` adds behind the catalog's own columns, before ``output.prefix``.
ENRICHED_FIELDS = (
    pa.field("valence", pa.float32()),
    pa.field("arousal", pa.float32()),
    pa.field("valence_std", pa.float32()),
    pa.field("arousal_std", pa.float32()),
    *INTERVAL_FIELDS,
    pa.field("n_segments", pa.int32()),
    pa.field("duration_seconds", pa.float64()),
    pa.field("tag_status", pa.string()),
    pa.field("model_id", pa.string()),
    pa.field("features_id", pa.string()),
    pa.field("scored_at", _TIME),
)

#: ``tag_status`` of a scored track; any other status is one of ``REASONS``.
SCORED = "scored"


def content_id(content: object) -> str:
    """Short hash of a JSON-serialisable value: 12 hexadecimal digits of its SHA-256."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def utc_now() -> datetime.datetime:
    """Now, as every time on disk is written: UTC, with its zone."""
    return datetime.datetime.now(datetime.UTC)
