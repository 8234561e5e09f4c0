"""Networks for the learners: trained on Ray Train's workers, applied in the driver."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mer_batch.batches import ShardBatches
from mer_batch.clips import FeatureSource
from mer_batch.config import LearnConfig, RecipeConfig
from mer_batch.errors import ConfigError
from mer_batch.feature_sets import FeatureSet
from mer_batch.learners import Scores
from mer_batch.models import build_model
from mer_batch.network import predict
from mer_batch.pipelines.cluster import connected
from mer_batch.pipelines.ray_training import check_training, train_network
from mer_batch.storage import parse_uri

_BATCH_CLIPS = 32
# An evaluation trains many networks: a line now and then is enough. TensorBoard has them all.
_LINE_SECONDS = 10.0


class NetworkTrainer:
    """Trains networks as configured, as a context; connects to Ray for the first of them.

    See :class:`mer_batch.learners.Trainer`.

    Parameters
    ----------
    config : LearnConfig
    say : callable
        Called with a line of progress.

    Attributes
    ----------
    sources : dict of str to list of FeatureSource
        By features_id one for each data set; filled once the features are there.
    """

    def __init__(self, config: LearnConfig, say: Callable[[str], None]) -> None:
        self._config = config
        self._say = say
        self._last_line = 0.0
        self._stack = contextlib.ExitStack()
        self._is_connected = config.workers.n_workers == 0
        self.sources: dict[str, list[FeatureSource]] = {}

    def __enter__(self) -> NetworkTrainer:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def train(
        self,
        recipe: RecipeConfig,
        *,
        task: int,
        labels: Mapping[str, tuple[float, float]],
        validation_labels: Mapping[str, tuple[float, float]],
        seed: int,
        name: str,
    ) -> nn.Module:
        """See :class:`mer_batch.learners.Trainer`."""
        source = self._source(recipe, task)
        folder = training_folder(self._config)
        if not self._is_connected:
            self._stack.enter_context(connected(self._config.ray, meanwhile=lambda: None))
            self._is_connected = True
        trained = train_network(
            parts=source.parts,
            feature_set=source.feature_set,
            labels=labels,
            validation_labels=validation_labels,
            model_name=recipe.model,
            model_parameters=recipe.parameters,
            settings=recipe.training,
            workers=self._config.workers,
            seed=seed,
            storage_folder=folder,
            say=lambda line: self._say_now_and_then(f"{name}: {line}"),
            storage=source.storage,
            versions=source.versions,
        )
        model = build_model(recipe.model, recipe.parameters)
        model.load_state_dict(trained.state)
        return model

    def scores(
        self, recipe: RecipeConfig, model: nn.Module, *, task: int, track_ids: list[str]
    ) -> Scores:
        """See :class:`mer_batch.learners.Trainer`."""
        source = self._source(recipe, task)
        batches = ShardBatches(
            source.parts, source.feature_set, dict.fromkeys(track_ids, (0.0, 0.0)),
            batch_size=_BATCH_CLIPS, seed=0, shuffle=False, even=False, storage=source.storage,
            versions=source.versions,
        )  # fmt: skip
        found = predict(model, batches(), torch.device("cpu"))
        place = {track_id: position for position, track_id in enumerate(found.track_ids)}
        order = [place[track_id] for track_id in track_ids]
        mean = found.mean[order]
        return Scores(np.clip(mean, -1, 1) if recipe.clip else mean, found.std[order])

    def _say_now_and_then(self, line: str) -> None:
        if time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._last_line = time.monotonic()
            self._say(line)

    def _source(self, recipe: RecipeConfig, task: int) -> FeatureSource:
        return self.sources[recipe.features.feature_set().features_id][task]


def check_network(
    config: LearnConfig, recipe: RecipeConfig, model: nn.Module, feature_set: FeatureSet
) -> None:
    """Refuse settings that a network cannot be trained with, before any work.

    Raises
    ------
    ConfigError
    """
    check_training(recipe.training, config.workers, feature_set)
    training_folder(config)
    has_standards = {"centre", "scale"} <= {name for name, _ in model.named_buffers()}
    if recipe.training.standardise and not has_standards:
        raise ConfigError(
            f"training.standardise=True must be false for {recipe.model!r}, which has nowhere to "
            "keep mean and deviation; set it so, or use log_mel_cnn"
        )


def training_folder(config: LearnConfig) -> Path:
    """Where networks keep their last epoch.

    Raises
    ------
    ConfigError
        Where that would be on an object store.
    """
    given = config.workers.folder
    location = parse_uri(given or config.output.uri)
    if location.is_s3:
        key = "workers.folder" if given else "output.uri"
        raise ConfigError(
            f"{key}={given or config.output.uri!r} must be a disk that all workers reach, where "
            "networks keep their last epoch; name one as workers.folder"
        )
    return Path(location.path) if given else Path(location.path) / "training"
