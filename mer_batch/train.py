"""One network's training, as one worker does it: model, batches, standardisation, loop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import mer_batch
from mer_batch.audio.augment import Augmentation
from mer_batch.batches import Labels, Reader, ShardBatches, Span, augmented
from mer_batch.config import AugmentConfig, TrainingConfig
from mer_batch.errors import ConfigError
from mer_batch.feature_sets import FeatureSet
from mer_batch.fit import EpochRecord, FitSettings, OnEpoch, State, fit
from mer_batch.models import build_model
from mer_batch.network import standardise
from mer_batch.schema import content_id
from mer_batch.storage import Storage


@dataclass(frozen=True)
class TrainingJob:
    """All that a worker must know.

    Attributes
    ----------
    parts : list of str
        Absolute URIs of the features table's parts.
    feature_set : FeatureSet
    labels, validation_labels : mapping of str to (valence, arousal)
        Of the clips to learn from, and of those to watch; the latter may be empty.
    spans, validation_spans : list of Span
        Where their rows lie.
    model : str
    parameters : dict
    settings : TrainingConfig
    seed : int
    storage : Storage
    """

    parts: list[str]
    feature_set: FeatureSet
    labels: Labels
    validation_labels: Labels
    spans: Sequence[Span]
    validation_spans: Sequence[Span]
    model: str
    parameters: dict[str, Any]
    settings: TrainingConfig
    seed: int
    storage: Storage

    def content_id(self) -> str:
        """Changes with all that this network depends on, but for the number of workers."""
        digest = hashlib.sha256()
        for labels in (self.labels, self.validation_labels):
            pairs = sorted((name, *map(float, values)) for name, values in labels.items())
            digest.update(json.dumps(pairs).encode())
        return content_id(
            {
                "parts": sorted(uri.rpartition("/")[2] for uri in self.parts),
                "features_id": self.feature_set.features_id,
                "labels": digest.hexdigest(),
                "model": self.model,
                "parameters": self.parameters,
                "settings": self.settings.model_dump(exclude={"n_members"}),
                "seed": self.seed,
                "mer_batch": mer_batch.__version__,
            }
        )


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes
    ----------
    state : dict of str to Tensor
        Weights and buffers, on the CPU.
    history : list of EpochRecord
        All epochs, those before a resume too.
    best_epoch : int
        Whose weights these are.
    """

    state: dict[str, Tensor]
    history: list[EpochRecord]
    best_epoch: int


def train(
    job: TrainingJob,
    *,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
    resume: State | None = None,
    rank: int = 0,
    world_size: int = 1,
    process_group: dist.ProcessGroup | None = None,
    read: Reader | None = None,
) -> Trained:
    """Train the job's network, as worker `rank` of `world_size`.

    Raises
    ------
    TrainingError
        See :func:`mer_batch.fit.fit`.
    """
    settings = job.settings

    def shards(labels: Labels, spans: Sequence[Span], **options: Any) -> ShardBatches:
        return ShardBatches(
            job.parts, job.feature_set, labels,
            batch_size=settings.batch_size // world_size, seed=job.seed, rank=rank,
            world_size=world_size, storage=job.storage, spans=spans, read=read, **options,
        )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        model = build_model(job.model, job.parameters).to(device)
    if settings.standardise and resume is None:
        every = shards(job.labels, job.spans, shuffle=False, even=False)
        standardise(model, every(), process_group=process_group)
    how = augmentation(settings.augment, job.feature_set)
    learned = shards(job.labels, job.spans)
    watched = shards(job.validation_labels, job.validation_spans, shuffle=False, even=False)
    result = fit(
        model,
        lambda epoch: augmented(
            learned(epoch), how, job.feature_set, seed=job.seed, epoch=epoch,
            blank=model.get_buffer("centre").cpu() if settings.standardise else None,
        ),
        watched if job.validation_labels else None,
        fit_settings(settings),
        device=device,
        seed=job.seed,
        on_epoch=on_epoch,
        resume=resume,
        process_group=process_group,
    )  # fmt: skip
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    return Trained(state, result.history, result.best_epoch)


def fit_settings(settings: TrainingConfig) -> FitSettings:
    """The configuration, as the loop takes it."""
    names = (
        "optimizer", "learning_rate", "weight_decay", "epochs", "schedule", "warmup_epochs",
        "patience", "restore_best",
    )  # fmt: skip
    taken = {name: getattr(settings, name) for name in names}
    return FitSettings(**taken, mixed_precision=settings.precision == "mixed")


def augmentation(config: AugmentConfig, feature_set: FeatureSet) -> Augmentation:
    """The configuration in seconds, as the kernel takes it, in frames.

    Raises
    ------
    ConfigError
        Where clips would change their length under a feature set of one length.
    """
    frames_a_second = feature_set.mel.sample_rate / feature_set.mel.hop_length
    how = Augmentation(
        crop_frames=round(config.crop_seconds * frames_a_second),
        n_time_masks=config.n_time_masks,
        max_time_mask_frames=round(config.max_time_mask_seconds * frames_a_second),
        n_band_masks=config.n_band_masks,
        max_band_mask=config.max_band_mask,
        gain_db=config.gain_db,
        stretch=config.stretch,
        mixup=config.mixup,
    )
    if feature_set.fixed_length and not how.keeps_length:
        raise ConfigError(
            f"augment.crop_seconds={config.crop_seconds:g} and augment.stretch={config.stretch:g} "
            f"must be 0 for feature set {feature_set.name!r}, whose clips have one length; use "
            "the other augmentations, or features of any length"
        )
    return how
