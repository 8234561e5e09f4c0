"""Configuration: one validated YAML, keys overridable on the command line, all faults at once."""

from __future__ import annotations

import dataclasses
import datetime
import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

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
from mer_batch.errors import ConfigError, holds_credentials
from mer_batch.feature_sets import FeatureSet, feature_set
from mer_batch.limits import ChildLimits
from mer_batch.plain_yaml import MAX_DEPTH, read_yaml
from mer_batch.registry import unknown_name
from mer_batch.shown import shown, shown_text

# What training and evaluation write below output.uri themselves.
_OWN_FOLDERS = frozenset({"checkpoint", "evaluation", "runs", "training"})


_RAY_TOKEN = "a cluster's token comes from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"


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


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_. -]*", name) or name in _OWN_FOLDERS:
        raise ValueError(
            "must begin with a letter or digit, hold letters, digits, spaces, and _ . - only, and "
            f"be none of {', '.join(sorted(_OWN_FOLDERS))}: it names a folder below output.uri"
        )
    return name


def _http_url(url: str | None) -> str | None:
    if url is None:
        return None
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("must look like http://host:port or https://host")
    if holds_credentials(url):
        raise ValueError("must not hold credentials; they come from the environment")
    return url


def _no_credentials(uri: str) -> str:
    if holds_credentials(uri):
        raise ValueError(
            "must not hold credentials; they come from the environment, a profile or a role"
        )
    return uri


def _ray_address(address: str | None) -> str | None:
    if address and ("@" in address or holds_credentials(address)):
        raise ValueError(f"must not hold credentials; {_RAY_TOKEN}")
    return address


def _no_number(value: Any) -> Any:
    # Pydantic would take 0 for the first of January 1970.
    if isinstance(value, int | float):
        raise ValueError("must be a date like 2026-11-22")
    return value


DatasetName = Annotated[str, AfterValidator(_folder_name)]
NonEmpty = Annotated[str, Field(min_length=1)]
Uri = Annotated[NonEmpty, AfterValidator(_no_credentials)]
# Upper bounds are far above whatever may make sense, and below what breaks sockets, limits of
# processes and random generators.
#
# A week: the system call that waits for a socket takes 32 bits of milliseconds, some three weeks.
_MAX_SECONDS = 7 * 24 * 3600.0
_MAX_COUNT = 1_000_000
# For how long a table's replaced parts stay, unless whoever shortens it knows all readers.
_SAFE_DAYS = 7
Seconds = Annotated[float, Field(gt=0, le=_MAX_SECONDS, allow_inf_nan=False)]
Bytes = Annotated[int, Field(gt=0, le=2**40)]


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
    allowed_roots : list of str, optional
        Folders and prefixes that all audio must lie below, links followed. By default relative
        URIs must stay below the catalog's folder, and a catalog on S3 names no local files.
    """

    uri: Uri
    format: Literal["auto", "parquet", "csv", "jsonl", "delta", "audio"] = "auto"
    id_column: NonEmpty = "track_id"
    audio_column: NonEmpty = "audio_uri"
    version_column: NonEmpty | None = None
    duration_column: NonEmpty | None = None
    changes: Literal["detect", "ignore"] = "detect"
    allowed_roots: Annotated[list[NonEmpty], Field(min_length=1)] | None = None


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

    uri: Uri
    prefix: Annotated[str, AfterValidator(_column_name_part)] = ""
    lease_seconds: Annotated[Seconds, Field(ge=2)] = 60.0


class ModelConfig(_Section):
    """``builtin``, or the URI of a checkpoint folder."""

    uri: Uri = "builtin"


class AudioConfig(_Section):
    """What one track may cost before it becomes a reject, and how it is decoded.

    Attributes
    ----------
    decoder : {"auto", "libsndfile"}
        MPEG audio goes straight to the system's libmpg123 where there is one, which is quicker
        where nothing could be compiled, or always through libsndfile. The scores are the same.
    """

    decoder: Literal["auto", "libsndfile"] = "auto"
    max_bytes: Bytes = AudioLimits.max_bytes
    min_seconds: Seconds = AudioLimits.min_seconds
    max_seconds: Seconds = AudioLimits.max_seconds
    timeout_seconds: Seconds = ChildLimits.timeout_seconds
    memory_bytes: Bytes = ChildLimits.memory_bytes

    @model_validator(mode="after")
    def _some_track_fits(self) -> AudioConfig:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds must be at most max_seconds={self.max_seconds:g}")
        return self

    def limits(self) -> ChildLimits:
        """The same, as the kernels take them."""
        audio = AudioLimits(
            max_bytes=self.max_bytes,
            min_seconds=self.min_seconds,
            max_seconds=self.max_seconds,
            direct=self.decoder == "auto",
        )
        return ChildLimits(audio, self.timeout_seconds, self.memory_bytes)


class StorageConfig(_Section):
    """How to reach an S3 store. Credentials come from the environment, never from here.

    Attributes
    ----------
    patience_seconds : float
        For how long a fault that may pass, such as throttling, is waited for [s].
    """

    endpoint_url: Annotated[str | None, AfterValidator(_http_url)] = None
    region: str | None = None
    patience_seconds: float = Field(60.0, ge=1, le=600)


class RayConfig(_Section):
    """Where Ray runs: ``address`` of a cluster, else ``RAY_ADDRESS``, else this machine."""

    address: Annotated[str | None, AfterValidator(_ray_address)] = None
    num_cpus: int | None = Field(None, gt=0, le=8_192)  # no Linux has more
    verbose: bool = False

    def cluster_address(self) -> str:
        """The cluster to join: `address`, else ``RAY_ADDRESS``, else ``local``.

        Raises
        ------
        ConfigError
            Where the variable holds credentials.
        """
        named = self.address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            _ray_address(named)
        except ValueError as error:
            raise ConfigError(f"RAY_ADDRESS={shown(named)} {error}") from error
        return named


class CompactConfig(_Section):
    """How the tables are kept in order, whose nights leave many small parts.

    Attributes
    ----------
    when : {"auto", "never"}
        ``auto``: a run merges small parts at its end, where there are many. `mer-batch compact`
        does so always.
    retention_days : int
        For how long a part that was replaced stays where it is, for readers of earlier versions.
    allow_short_retention : bool
        Less than seven days only with this: who reads for longer loses what is being read.
    keep_runs_days : int, optional
        ``mer-batch compact`` deletes the traces of runs (``runs/<run_id>/``) that are older; null:
        never.
    """

    when: Literal["auto", "never"] = "auto"
    retention_days: int = Field(_SAFE_DAYS, ge=0, le=3_650)
    allow_short_retention: bool = False
    keep_runs_days: int | None = Field(None, ge=_SAFE_DAYS, le=36_500)

    @model_validator(mode="after")
    def _readers_have_time(self) -> CompactConfig:
        if self.retention_days < _SAFE_DAYS and not self.allow_short_retention:
            raise ValueError(
                f"retention_days={self.retention_days} must be at least {_SAFE_DAYS}, as readers "
                "may still hold what was replaced; where nobody reads for so long, set "
                "compact.allow_short_retention=true"
            )
        return self


class ScoringConfig(_Section):
    """Where decoded features are scored: in each decoder's own process, or by a pool of actors.

    Attributes
    ----------
    device : {"cpu", "cuda", "auto"}
        ``cuda``: by actors on GPUs. ``auto``: so where the cluster has GPUs, else as ``cpu``.
    actors : int
        How many. 0: with ``cpu`` none, every decoder scores for itself; with ``cuda`` as many as
        there are GPUs for.
    gpus_per_actor : float
        A share of one, so that several have it in common, or a whole number.
    batch_segments : int
        Segments that an actor is shown at a time, at most.
    """

    device: Literal["cpu", "cuda", "auto"] = "cpu"
    actors: int = Field(0, ge=0, le=1_024)
    gpus_per_actor: float = Field(1.0, ge=0.01, le=64)
    batch_segments: int = Field(32, ge=1, le=4_096)

    @model_validator(mode="after")
    def _gpus_are_whole_or_shared(self) -> ScoringConfig:
        if self.gpus_per_actor > 1 and self.gpus_per_actor % 1:
            raise ValueError(
                f"gpus_per_actor={self.gpus_per_actor:g} must be a share of one GPU or a whole "
                "number of them"
            )
        return self

    @property
    def wants_pool(self) -> bool:
        """Whether there is a pool for certain, whatever the cluster has."""
        return self.device == "cuda" or self.actors > 0


class TagConfig(_Section):
    """Configuration of ``mer-batch tag``.

    Attributes
    ----------
    max_reject_rate : float
        Share of the tracks tried since the last published night that may end as rejects, rounded
        up to a whole track; above it nothing is published. Tracks that were rejects by that night
        already do not count.
    run_date : date, optional
        Name of the published night, today (UTC) by default.
    """

    catalog: CatalogConfig
    output: OutputConfig
    model: ModelConfig = ModelConfig()
    scoring: ScoringConfig = ScoringConfig()
    audio: AudioConfig = AudioConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
    compact: CompactConfig = CompactConfig()
    max_reject_rate: float = Field(0.1, ge=0, le=1)
    run_date: Annotated[datetime.date | None, BeforeValidator(_no_number)] = None

    def enriched_names(self) -> list[str]:
        """Names of the columns that ``enriched/`` adds."""
        return [self.output.prefix + field.name for field in schema.ENRICHED_FIELDS]


class LabelledDataConfig(_Section):
    """One labelled data set; its key in ``data`` is its name in tables, cards and folders.

    Attributes
    ----------
    uri : str
        A local folder with the release (or, for ``table``, the table itself).
    loader : str, optional
        A file in ``datasets/``; the data set's own name by default.
    options : dict
        The loader's own, such as the columns of a table.
    features : str, optional
        An ``output.uri`` of ``mer-batch extract`` to take features from as they are. By default
        they lie in ``<output.uri>/<name>``, and what is missing there is extracted first.
    """

    uri: Uri
    loader: NonEmpty | None = None
    options: dict[str, Any] = {}
    features: Uri | None = None


class FeaturesConfig(_Section):
    """Which features are kept of a track, and how.

    Attributes
    ----------
    name : str
        A file in ``feature_sets/``.
    placement : {"even", "random"}
        Segments spread evenly over a track, as ``tag`` scores them, or at random places that
        follow from the track's id alone.
    max_segments : int, optional
        Of a track; the feature set's own number by default.
    dtype : {"float16", "float32"}
        Of the decibels on disk.
    """

    name: NonEmpty = "log_mel"
    placement: Literal["even", "random"] = "even"
    max_segments: int | None = Field(None, ge=1, le=100)
    dtype: Literal["float16", "float32"] = "float16"

    def feature_set(self) -> FeatureSet:
        """The feature set of this name, with this placement and number of segments.

        Raises
        ------
        ConfigError
            Naming the feature sets there are.
        """
        named = feature_set(self.name)
        return dataclasses.replace(
            named,
            placement=self.placement,
            max_segments=self.max_segments or named.max_segments,
        )


class ExtractConfig(_Section):
    """Configuration of ``mer-batch extract``: a catalog in, ``features/`` out.

    Attributes
    ----------
    max_reject_rate : float
        Share of the tracks tried that may end as rejects; above it the run stops, and what was
        extracted is kept.
    """

    catalog: CatalogConfig
    output: OutputConfig
    features: FeaturesConfig = FeaturesConfig()
    audio: AudioConfig = AudioConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
    compact: CompactConfig = CompactConfig()
    max_reject_rate: float = Field(0.1, ge=0, le=1)


class AugmentConfig(_Section):
    """What is done to a training clip's mel spectrogram, anew in every epoch; 0 switches off.

    Attributes
    ----------
    crop_seconds : float
        Length of the random crop that the model is shown [s]; 0 shows whole segments.
    n_time_masks, max_time_mask_seconds, n_band_masks, max_band_mask
        Stretches of time and runs of bands that are blanked.
    gain_db : float
        Level is shifted by up to so much either way [dB].
    stretch : float
        Time is resampled by a factor between 1 - stretch and 1 + stretch.
    mixup : float
        Parameter of the beta distribution that two clips are mixed by.
    """

    crop_seconds: float = Field(0.0, ge=0, le=_MAX_SECONDS)
    n_time_masks: int = Field(0, ge=0, le=1_000)
    max_time_mask_seconds: Seconds = 1.0
    n_band_masks: int = Field(0, ge=0, le=1_000)
    max_band_mask: int = Field(8, ge=1, le=1_000)
    gain_db: float = Field(0.0, ge=0, le=100)
    stretch: float = Field(0.0, ge=0, lt=1)
    mixup: float = Field(0.0, ge=0, le=1_000)


class TrainingConfig(_Section):
    """How a network is trained; models with a closed form need none of it.

    Attributes
    ----------
    optimizer : {"adam", "adamw"}
    learning_rate, weight_decay : float
    epochs, batch_size : int
        Batches over all workers together.
    schedule : {"constant", "cosine"}
        Of the learning rate from epoch to epoch, after a linear warm-up of `warmup_epochs`.
    patience : int, optional
        Stop after so many epochs without a better validation loss; null: never.
    restore_best : bool
        Keep the weights of the epoch with the best validation loss, not of the last.
    standardise : bool
        Per band, with mean and deviation of the training split only.
    precision : {"float32", "mixed"}
        Mixed precision needs a GPU.
    n_members : int
        Networks in the ensemble, each from another seed.
    augment : AugmentConfig
    """

    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(1e-3, gt=0, le=1_000)
    weight_decay: float = Field(0.0, ge=0, le=1_000)
    epochs: int = Field(100, ge=1, le=_MAX_COUNT)
    batch_size: int = Field(32, ge=1, le=_MAX_COUNT)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_epochs: int = Field(0, ge=0, le=_MAX_COUNT)
    patience: int | None = Field(None, ge=1, le=_MAX_COUNT)
    restore_best: bool = True
    standardise: bool = True
    precision: Literal["float32", "mixed"] = "float32"
    n_members: int = Field(1, ge=1, le=1_000)  # more would share seeds with the next seed's
    augment: AugmentConfig = AugmentConfig()


class RecipeConfig(_Section):
    """One way to get a model: its architecture, its features, and how it is fitted.

    Attributes
    ----------
    model : str
        A file in ``models/``.
    parameters : dict
        The model's constructor arguments, where they differ from its defaults.
    fit : dict
        Arguments of the closed-form fit, for models that have one.
    features : FeaturesConfig
    clip : bool
        Measure scores cut off at the ends of the scale, as ``tag`` writes them; false: a network's
        own output, as papers do.
    training : TrainingConfig
    """

    model: NonEmpty
    parameters: dict[str, Any] = {}
    fit: dict[str, Any] = {}
    features: FeaturesConfig = FeaturesConfig()
    clip: bool = True
    training: TrainingConfig = TrainingConfig()


class SplitConfig(_Section):
    """How clips are divided into what is learned from and what is measured on.

    Attributes
    ----------
    kind : {"grouped", "random", "official"}
        ``grouped``: folds that keep every album or artist whole. ``random``: as the paper, clips
        of one album on both sides. ``official``: the data set's own split.
    n_folds, n_repeats : int
        Of the cross-validation: how many parts, and how many times it is drawn anew. A random
        split has one part of `test_share` instead of folds.
    spanning : {"refuse", "drop"}
        What becomes of training clips whose album or artist the official test split holds too.
    validation_share, test_share : float
        Share of the training clips kept for early stopping; share of all clips in a random
        split's test part.
    seed : int
    """

    kind: Literal["grouped", "random", "official"] = "grouped"
    n_folds: int = Field(5, ge=2, le=_MAX_COUNT)
    n_repeats: int = Field(3, ge=1, le=_MAX_COUNT)
    spanning: Literal["refuse", "drop"] = "refuse"
    validation_share: float = Field(0.2, gt=0, lt=1)
    test_share: float = Field(0.2, gt=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**31)  # scikit-learn takes 32 bits, and repeats add to it


class WorkersConfig(_Section):
    """Where networks are trained.

    Attributes
    ----------
    n_workers : int
        Ray Train workers; gradients are averaged over them. 0 trains in the driver, without Ray.
    use_gpu : bool
        One GPU a worker (nccl); else CPUs (gloo).
    max_failures : int
        How many times training resumes from its last epoch after a worker or node has died.
    folder : str, optional
        Keeps the last epoch of every training, and TensorBoard's logs; all workers must reach it.
        ``training/`` under a local `output.uri` by default.
    """

    n_workers: int = Field(1, ge=0, le=8_192)
    use_gpu: bool = False
    max_failures: int = Field(3, ge=0, le=_MAX_COUNT)
    folder: Uri | None = None


class LearnConfig(_Section):
    """Configuration of ``mer-batch train`` and ``mer-batch evaluate``.

    Attributes
    ----------
    data : dict of str to LabelledDataConfig
        The first is the one whose ratings the model is to give.
    recipes : dict of str to RecipeConfig
        By the name they have in tables; ``train`` fits one, ``evaluate`` measures them all.
    recipe : str, optional
        The one to train; the first by default.
    baselines : list of str
        Files in ``baselines/``, measured beside the recipes on the same features.
    title : str
        Of the evaluation's page.
    notes : list of str
        Paragraphs of the evaluation's page.
    """

    data: dict[DatasetName, LabelledDataConfig] = Field(min_length=1)
    output: OutputConfig
    recipes: dict[str, RecipeConfig] = Field(min_length=1)
    recipe: NonEmpty | None = None
    baselines: list[NonEmpty] = ["mean", "ridge", "extra_trees"]
    title: NonEmpty = "How good the scores are"
    notes: list[NonEmpty] = []
    split: SplitConfig = SplitConfig()
    workers: WorkersConfig = WorkersConfig()
    audio: AudioConfig = AudioConfig()
    storage: StorageConfig = StorageConfig()
    ray: RayConfig = RayConfig()
    max_reject_rate: float = Field(0.1, ge=0, le=1)


class LabelsConfig(_Section):
    """Configuration of ``mer-batch labels``.

    Attributes
    ----------
    data : dict of str to LabelledDataConfig
        As for training.
    audio : bool
        Whether every clip's audio must be there.
    """

    data: dict[str, LabelledDataConfig] = Field(min_length=1)
    audio: bool = True


Config = TypeVar("Config", bound=_Section)

_ALL_REASONS = "all"


def take_reasons(overrides: Sequence[str]) -> tuple[frozenset[str], list[str]]:
    """Take ``reason=REASON[,REASON...]`` out of overrides.

    Returns
    -------
    reasons : frozenset of str
        Empty where none is named; ``all`` names every one.
    rest : list of str
        The other overrides.

    Raises
    ------
    ConfigError
        For names that are no reasons.
    """
    own = [text.removeprefix("reason=") for text in overrides if text.startswith("reason=")]
    names = {name.strip() for text in own for name in text.split(",")} - {""}
    known = [*schema.REASONS, _ALL_REASONS]
    faults = [unknown_name("reason", name, known) for name in sorted(names) if name not in known]
    if faults:
        raise ConfigError("; ".join(faults))
    reasons = frozenset(schema.REASONS) if _ALL_REASONS in names else frozenset(names)
    return reasons, [text for text in overrides if not text.startswith("reason=")]


def take_cost(overrides: Sequence[str]) -> tuple[float | None, list[str]]:
    """Take ``cost_per_cpu_hour=NUMBER`` out of overrides.

    Raises
    ------
    ConfigError
        Where it is no number above 0.
    """
    own = [text for text in overrides if text.startswith("cost_per_cpu_hour=")]
    rest = [text for text in overrides if text not in own]
    if not own:
        return None, rest
    given = own[-1].partition("=")[2]
    try:
        cost = float(given)
    except ValueError:
        cost = math.nan
    if not 0 < cost < math.inf:
        raise ConfigError(
            f"cost_per_cpu_hour={shown(given)} must be a number above 0; give the price of one "
            "CPU for one hour, in any currency"
        )
    return cost, rest


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
    return _overridden(kind, _read_file(path), path, overrides)


def load_output_config(
    path: str | Path, overrides: Sequence[str] = ()
) -> TagConfig | ExtractConfig:
    """The configuration of whichever of ``tag`` and ``extract`` fills an output.

    Raises
    ------
    ConfigError
        As :func:`load_config`.
    """
    content = _read_file(path)
    if "features" in content:
        return _overridden(ExtractConfig, content, path, overrides)
    return _overridden(TagConfig, content, path, overrides)


def _overridden(
    kind: type[Config], content: dict[str, Any], path: str | Path, overrides: Sequence[str]
) -> Config:
    faults = [fault for text in overrides if (fault := _apply_override(content, text))]
    return _validated(kind, content, origin=str(path), faults=faults)


def _read_file(path: str | Path) -> dict[str, Any]:
    try:
        content = read_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config={str(path)!r} cannot be read: {error}") from error
    except ValueError as error:
        raise ConfigError(
            f"config={str(path)!r} is not valid YAML: {shown_text(str(error))}"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"config={str(path)!r} must hold `key: value` lines")
    return content


def parse_config(kind: type[Config], content: dict[str, Any], *, origin: str) -> Config:
    """Validate a configuration given as a dictionary; see :func:`load_config`."""
    return _validated(kind, content, origin=origin, faults=[])


def _validated(
    kind: type[Config], content: dict[str, Any], *, origin: str, faults: list[str]
) -> Config:
    """Validate; `faults` are those found before."""
    cause: Exception | None = None
    try:
        config = kind.model_validate(content)
        # Known now, a variable that must not be repeated is in no log.
        if isinstance(ray := getattr(config, "ray", None), RayConfig):
            ray.cluster_address()
    except ValidationError as error:
        faults = faults + [_fault(kind, fault) for fault in error.errors()]
        cause = error
    except ConfigError as error:
        faults = [*faults, str(error)]
    if faults:
        lines = "".join(f"\n  - {fault}" for fault in faults)
        plural = "fault" if len(faults) == 1 else "faults"
        raise ConfigError(f"{origin}: {len(faults)} {plural}:{lines}") from cause
    return config


def _apply_override(content: dict[str, Any], override: str) -> str | None:
    """Set one key; returns what is wrong with the override."""
    key, separator, text = override.partition("=")
    names = key.split(".")
    if not separator or not all(names) or len(names) > MAX_DEPTH:
        return f"override={shown(override)} must look like section.key=value"
    try:
        value = read_yaml(text)
    except ValueError as error:
        return f"override={shown(override)}: the value is not valid YAML: {shown_text(str(error))}"
    for name in names[:-1]:
        if content.get(name) is None:
            content[name] = {}
        if not isinstance(content[name], dict):
            return f"override={shown(override)}: {shown(name)} is not a section"
        content = content[name]
    content[names[-1]] = value
    return None


def _fault(kind: type[BaseModel], fault: ErrorDetails) -> str:
    """One validation fault in our own form: value, rule, remedy."""
    location = shown_text(".".join(map(str, fault["loc"])))
    if fault["type"] == "extra_forbidden":
        names = _keys_at(kind, fault["loc"][:-1])
        return unknown_name(
            "key", location, [".".join(map(str, (*fault["loc"][:-1], n))) for n in names]
        )
    if fault["type"] == "missing":
        return f"{location} is missing; add it to the file or as {location}=..."
    rule = fault["msg"].removeprefix("Value error, ")
    # A password in a URL is refused, but not repeated.
    return f"{location}={shown(fault['input'])}: {rule[0].lower()}{rule[1:]}"


def _keys_at(kind: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for name in location:
        section = kind.model_fields[str(name)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return []
        kind = section
    return list(kind.model_fields)
