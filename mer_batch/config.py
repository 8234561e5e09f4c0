"""Configuration: one validated YAML, keys overridable on the command line, all faults at once."""

from __future__ import annotations

import datetime
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from mer_batch import schema
from mer_batch.audio.decode import AudioLimits
from mer_batch.errors import ConfigError
from mer_batch.limits import ChildLimits
from mer_batch.registry import unknown_name

# PyYAML lets some of Python's own errors out, for values such as 2026-13-45.
_YAML_ERRORS = (yaml.YAMLError, ValueError, AttributeError, KeyError)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        # `ray:` with every line below it commented out is a section too.
        return {} if value is None else value


def _column_name_part(prefix: str) -> str:
    if prefix and not prefix.replace("_", "a").isalnum():
        raise ValueError("must consist of letters, digits and underscores")
    return prefix


def _http_url(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("must look like http://host:port or https://host")
    if "@" in parts.netloc:
        raise ValueError("must not hold credentials; they come from the environment")
    return url


def _no_number(value: Any) -> Any:
    # Pydantic would take 0 for the first of January 1970.
    if isinstance(value, int | float):
        raise ValueError("must be a date like 2026-11-22")
    return value


NonEmpty = Annotated[str, Field(min_length=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class CatalogConfig(_Section):
    """Where the tracks are listed.

    Attributes
    ----------
    uri : str
        A Parquet, CSV or JSONL file, a folder of them, a Delta table, or a folder (or object-store
        prefix) of audio files.
    format : str
        ``auto`` goes by file names; a folder that holds both audio and tables counts as audio
        unless `id_column` or `audio_column` is given.
    id_column, audio_column : str
        Columns of the track's id and of its audio's URI.
    version_column : str, optional
        A column that changes when the audio does (an etag, an updated-at): saves asking the store.
    duration_column : str, optional
        Duration [s], to find truncated audio by.
    changes : {"detect", "ignore"}
        ``ignore``: a track once scored is never looked at again under the same model.
    """

    uri: NonEmpty
    format: Literal["auto", "parquet", "csv", "jsonl", "delta", "audio"] = "auto"
    id_column: NonEmpty = "track_id"
    audio_column: NonEmpty = "audio_uri"
    version_column: NonEmpty | None = None
    duration_column: NonEmpty | None = None
    changes: Literal["detect", "ignore"] = "detect"


class OutputConfig(_Section):
    """Where everything goes.

    Attributes
    ----------
    uri : str
        A folder or ``s3://bucket/prefix``.
    prefix : str
        Put before the names of the columns that are added.
    lease_seconds : float
        After so long without a sign of life another run may take the output over [s].
    """

    uri: NonEmpty
    prefix: Annotated[str, AfterValidator(_column_name_part)] = ""
    lease_seconds: float = Field(60.0, ge=2, allow_inf_nan=False)


class ModelConfig(_Section):
    """``builtin``, or the URI of a checkpoint folder."""

    uri: NonEmpty = "builtin"


class AudioConfig(_Section):
    """What one track may cost before it becomes a reject."""

    max_bytes: int = Field(AudioLimits.max_bytes, gt=0)
    min_seconds: Seconds = AudioLimits.min_seconds
    max_seconds: Seconds = AudioLimits.max_seconds
    timeout_seconds: Seconds = ChildLimits.timeout_seconds
    memory_bytes: int = Field(ChildLimits.memory_bytes, gt=0)

    @model_validator(mode="after")
    def _some_track_fits(self) -> AudioConfig:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds must be at most max_seconds={self.max_seconds:g}")
        return self

    def limits(self) -> ChildLimits:
        """The same, as the kernels take them."""
        audio = AudioLimits(
            max_bytes=self.max_bytes, min_seconds=self.min_seconds, max_seconds=self.max_seconds
        )
        return ChildLimits(audio, self.timeout_seconds, self.memory_bytes)


class StorageConfig(_Section):
    """How to reach an S3 store. Credentials come from the environment, never from here."""

    endpoint_url: Annotated[str | None, AfterValidator(_http_url)] = None
    region: str | None = None


class RayConfig(_Section):
    """Where Ray runs: ``address`` of a cluster, else ``RAY_ADDRESS``, else this machine."""

    address: str | None = None
    num_cpus: int | None = Field(None, gt=0)
    verbose: bool = False


class TagConfig(_Section):
    """Configuration of ``mer-batch tag``.

    Attributes
    ----------
    max_reject_rate : float
        Share of the tracks tried since the last published night that may end as rejects, rounded
        up to a whole track; above it nothing is published.
    run_date : date, optional
        Name of the published night, today (UTC) by default.
    """

    catalog: CatalogConfig
    output: OutputConfig
    model: ModelConfig = ModelConfig()
    audio: AudioConfig = AudioConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
    max_reject_rate: float = Field(0.1, ge=0, le=1)
    run_date: Annotated[datetime.date | None, BeforeValidator(_no_number)] = None

    def enriched_names(self) -> list[str]:
        """Names of the columns that ``enriched/`` adds."""
        return [self.output.prefix + field.name for field in schema.ENRICHED_FIELDS]


class TrainDataConfig(_Section):
    """Which labelled data sets to learn from.

    Attributes
    ----------
    uri : str
        A local folder that holds a folder for each data set, of its loader's name.
    target : str
        The data set whose ratings the model is to give.
    related : list of str
        Data sets that help, as separate but correlated tasks.
    """

    uri: NonEmpty
    target: NonEmpty = "musifeast17"
    related: list[NonEmpty] = ["soundtracks"]

    @model_validator(mode="after")
    def _named_once(self) -> TrainDataConfig:
        names = [self.target, *self.related]
        if len(set(names)) < len(names):
            raise ValueError(f"target and related must name each data set once: {names}")
        return self


class TrainOutputConfig(_Section):
    """The local folder that the checkpoint is written to."""

    uri: NonEmpty


class PooledRidgeConfig(_Section):
    """The built-in model; see ``models/pooled_ridge.py``.

    Attributes
    ----------
    n_members : int
        Regressions in the ensemble.
    coupling : float
        Correlation between the tasks' regressions: 0 ignores the related sets, 1 pools them.
    """

    name: Literal["pooled_ridge"] = "pooled_ridge"
    n_members: int = Field(16, ge=1, le=1000)
    coupling: float = Field(0.7, ge=0, le=1)


class TrainConfig(_Section):
    """Configuration of ``mer-batch train``.

    Attributes
    ----------
    seed : int
        Of the folds and of the ensemble's members.
    n_folds, n_repeats : int
        Of the cross-validation: how many parts, and how many times it is drawn anew.
    """

    data: TrainDataConfig
    output: TrainOutputConfig
    model: PooledRidgeConfig = PooledRidgeConfig()
    seed: int = Field(0, ge=0)
    n_folds: int = Field(5, ge=2)
    n_repeats: int = Field(10, ge=1)


Config = TypeVar("Config", bound=_Section)


def load_config(kind: type[Config], path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply ``key=value`` overrides and validate.

    Parameters
    ----------
    kind : type
        The configuration's class.
    path : str or Path
    overrides : sequence of str
        ``section.key=value``; the value is read as YAML.

    Raises
    ------
    ConfigError
        Listing every fault, with the closest valid key for a misspelt one.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={str(path)!r} cannot be read: {error}") from error
    except _YAML_ERRORS as error:
        raise ConfigError(f"config={str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config={str(path)!r} must hold `key: value` lines")
    faults = [fault for text in overrides if (fault := _apply_override(content, text))]
    return _validated(kind, content, origin=str(path), faults=faults)


def parse_config(kind: type[Config], content: dict[str, Any], *, origin: str) -> Config:
    """Validate a configuration given as a dictionary; see :func:`load_config`."""
    return _validated(kind, content, origin=origin, faults=[])


def _validated(
    kind: type[Config], content: dict[str, Any], *, origin: str, faults: list[str]
) -> Config:
    """Validate; `faults` are those found before."""
    cause = None
    try:
        config = kind.model_validate(content)
    except ValidationError as error:
        faults = faults + [_fault(kind, fault) for fault in error.errors()]
        cause = error
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        plural = "fault" if len(faults) == 1 else "faults"
        raise ConfigError(f"{origin}: {len(faults)} {plural}:{lines}") from cause
    return config


def _apply_override(content: dict[str, Any], override: str) -> str | None:
    """Set one key; returns what is wrong with the override."""
    key, separator, text = override.partition("=")
    names = key.split(".")
    if not separator or not all(names):
        return f"override={override!r} must look like section.key=value"
    try:
        value = yaml.safe_load(text)
    except _YAML_ERRORS as error:
        return f"override={override!r}: the value is not valid YAML: {error}"
    for name in names[:-1]:
        if content.get(name) is None:
            content[name] = {}
        if not isinstance(content[name], dict):
            return f"override={override!r}: {name!r} is not a section"
        content = content[name]
    content[names[-1]] = value
    return None


def _fault(kind: type[BaseModel], fault: ErrorDetails) -> str:
    """One validation fault in our own form: value, rule, remedy."""
    location = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        names = _keys_at(kind, fault["loc"][:-1])
        return unknown_name(
            "key", location, [".".join(map(str, (*fault["loc"][:-1], n))) for n in names]
        )
    if fault["type"] == "missing":
        return f"{location} is missing; add it to the file or as {location}=..."
    rule = fault["msg"].removeprefix("Value error, ")
    # A password in a URL is refused, but not repeated.
    value = re.sub(r"//[^/@]*@", "//***@", repr(fault["input"]))
    return f"{location}={value}: {rule[0].lower()}{rule[1:]}"


def _keys_at(kind: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for name in location:
        section = kind.model_fields[str(name)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        kind = section
    return list(kind.model_fields)
