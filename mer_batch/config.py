"""Configuration: one validated YAML, keys overridable on the command line, all faults at once."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from mer_batch import schema
from mer_batch.audio.decode import AudioLimits
from mer_batch.child import ChildLimits
from mer_batch.errors import ConfigError
from mer_batch.registry import unknown_name


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


def _column_name_part(prefix: str) -> str:
    if prefix and not prefix.replace("_", "a").isalnum():
        raise ValueError("must consist of letters, digits and underscores")
    return prefix


NonEmpty = Annotated[str, Field(min_length=1)]


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
    lease_seconds: float = Field(60.0, ge=2)


class ModelConfig(_Section):
    """``builtin``, or the URI of a checkpoint folder."""

    uri: NonEmpty = "builtin"


class AudioConfig(_Section):
    """What one track may cost before it becomes a reject."""

    max_bytes: int = Field(AudioLimits.max_bytes, gt=0)
    min_seconds: float = Field(AudioLimits.min_seconds, gt=0)
    max_seconds: float = Field(AudioLimits.max_seconds, gt=0)
    timeout_seconds: float = Field(ChildLimits.timeout_seconds, gt=0)
    memory_bytes: int = Field(ChildLimits.memory_bytes, gt=0)

    def limits(self) -> ChildLimits:
        """The same, as the kernels take them."""
        audio = AudioLimits(
            max_bytes=self.max_bytes, min_seconds=self.min_seconds, max_seconds=self.max_seconds
        )
        return ChildLimits(audio, self.timeout_seconds, self.memory_bytes)


class StorageConfig(_Section):
    """How to reach an S3 store. Credentials come from the environment, never from here."""

    endpoint_url: str | None = None
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
    run_date: datetime.date | None = None

    def enriched_names(self) -> list[str]:
        """Names of the columns that ``enriched/`` adds."""
        return [self.output.prefix + field.name for field in schema.ENRICHED_FIELDS]


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
    except yaml.YAMLError as error:
        raise ConfigError(f"config={str(path)!r} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config={str(path)!r} must hold `key: value` lines")
    for override in overrides:
        _apply_override(content, override)
    return parse_config(kind, content, origin=str(path))


def parse_config(kind: type[Config], content: dict[str, Any], *, origin: str) -> Config:
    """Validate a configuration given as a dictionary; see :func:`load_config`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [_fault(kind, fault) for fault in error.errors()]
        lines = "".join(f"\n  - {fault}" for fault in faults)
        plural = "fault" if len(faults) == 1 else "faults"
        raise ConfigError(f"{origin}: {len(faults)} {plural}:{lines}") from error


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    names = key.split(".")
    if not separator or not all(names):
        raise ConfigError(f"override={override!r} must look like section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override={override!r}: the value is not valid YAML: {error}") from error
    for name in names[:-1]:
        section = content.setdefault(name, {})
        if not isinstance(section, dict):
            raise ConfigError(f"override={override!r}: {name!r} is not a section")
        content = section
    content[names[-1]] = value


def _fault(kind: type[BaseModel], fault: ErrorDetails) -> str:
    """One validation fault in our own form: value, rule, remedy."""
    location = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        names = _keys_at(kind, fault["loc"][:-1])
        return unknown_name("key", location, [".".join(map(str, (*fault["loc"][:-1], n))) for n in names])
    if fault["type"] == "missing":
        return f"{location} is missing; add it to the file or as {location}=..."
    rule = fault["msg"].removeprefix("Value error, ")
    return f"{location}={fault['input']!r}: {rule[0].lower()}{rule[1:]}"


def _keys_at(kind: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for name in location:
        section = kind.model_fields[str(name)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        kind = section
    return list(kind.model_fields)
