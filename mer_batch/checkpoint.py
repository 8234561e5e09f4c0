"""Checkpoints: safetensors weights beside a JSON card. Nothing is ever unpickled.

A checkpoint is a folder of two files::

    card.json             what the model is, what it needs, what it was trained on, how good it is
    weights.safetensors   the tensors; the card holds their SHA-256
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import safetensors
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mer_batch import schema
from mer_batch.errors import CheckpointError, MerBatchError
from mer_batch.feature_sets import FeatureSet, feature_set
from mer_batch.native_models import Function, native_model

if TYPE_CHECKING:
    import torch

    from mer_batch.storage import Location, Storage

CARD_NAME = "card.json"
WEIGHTS_NAME = "weights.safetensors"

HalfWidth = Annotated[float | None, Field(ge=0, allow_inf_nan=False)]


class FeatureShape(BaseModel):
    """The features that a model was built for, as its card records them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    features_id: str
    n_mels: int
    segment_frames: int
    unit: str


class Intervals(BaseModel):
    """Split-conformal intervals around scores; see ``mer_batch.conformal``.

    Attributes
    ----------
    level : float
        Share of unseen clips that an interval covers.
    calibrated_on : str
        The data set whose out-of-fold residuals they follow from.
    half_width : dict of str to float or None
        How far an interval reaches either way; None where the clips were too few.
    coverage : dict of str to float or None
        As measured, on folds that took no part in the calibration.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    level: float = Field(gt=0, lt=1)
    calibrated_on: str
    half_width: dict[str, HalfWidth]
    coverage: dict[str, float | None]


class Card(BaseModel):
    """What a checkpoint says of itself.

    Attributes
    ----------
    model : str
        Name of a file in ``models/``.
    parameters : dict
        Its constructor's keyword arguments.
    features : FeatureShape
        What the model is to be shown.
    targets : list of str
        Order of the outputs; must be ``schema.TARGETS``.
    scale : list of float
        Lowest and highest value of the targets; must be [-1, 1].
    weights_sha256 : str
        Hash of the weights file.
    training_data : list of dict
        Data set, number of clips, licence or terms, citation.
    r2 : dict
        Measured R^2: {data set: {"valence": ..., "arousal": ..., "protocol": ...}}.
    notes : str
        What a user must know before relying on the scores.
    intervals : dict, optional
        How far either way the interval around a score reaches that covers 90 % of unseen clips:
        {"level": 0.9, "half_width": {"valence": ..., "arousal": ...}, ...}.
    recipe : dict
        How it was trained, as configured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    parameters: dict[str, Any]
    features: FeatureShape
    targets: list[str]
    scale: list[float]
    weights_sha256: str
    training_data: list[dict[str, Any]]
    r2: dict[str, dict[str, Any]]
    notes: str = ""
    intervals: Intervals | None = None
    recipe: dict[str, Any] = {}


class Checkpoint:
    """A card and its weights, checked against one another.

    Parameters
    ----------
    card_json, weights : bytes
        The two files as they are.
    origin : str
        Where they came from, for messages.

    Raises
    ------
    CheckpointError
        Where the card is not valid, the weights are not those that the card names, or the model
        does not fit them or today's feature set.
    """

    def __init__(self, card_json: bytes, weights: bytes, *, origin: str) -> None:
        self.origin = origin
        self.card_json = card_json
        self.weights = weights
        self.card = _parse_card(card_json, origin)
        digest = hashlib.sha256(weights).hexdigest()
        if digest != self.card.weights_sha256:
            raise CheckpointError(
                f"{origin}: {WEIGHTS_NAME} has sha256={digest}, but {CARD_NAME} names "
                f"{self.card.weights_sha256}; restore the file that belongs to the card"
            )
        self.model_id = _model_id(self.card, digest)
        self.feature_set = _fitting_feature_set(self.card, origin)

    def build(self) -> torch.nn.Module:
        """Build the model and load its weights: a torch module, ready to score.

        Raises
        ------
        CheckpointError
            Where the weights do not fit, as below.
        """
        # Imported here, as below: a card can be read and a night planned without torch.
        import safetensors.torch

        from mer_batch.models import build_model

        try:
            model = build_model(self.card.model, self.card.parameters)
            model.load_state_dict(safetensors.torch.load(self.weights))
        except (MerBatchError, RuntimeError, safetensors.SafetensorError) as error:
            raise self._misfit(error) from error
        return model

    def function(self, device: str = "cpu") -> Function:
        """The model as a function of features, without torch where it can do without.

        Parameters
        ----------
        device : str
            As torch names it.
        """
        if device == "cpu" and (native := self._native()) is not None:
            return native
        from mer_batch.models import on_device

        return on_device(self.build(), device)

    def _native(self) -> Function | None:
        try:
            return native_model(self.card.model, self.card.parameters, self.weights)
        except (TypeError, ValueError, safetensors.SafetensorError) as error:
            raise self._misfit(error) from error

    def _misfit(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.origin}: the weights do not fit model={self.card.model!r} with "
            f"parameters={self.card.parameters!r}: {error}"
        )

    @property
    def half_widths(self) -> tuple[float | None, float | None]:
        """How far the card's interval around each score reaches; None where it has none."""
        if self.card.intervals is None:
            return (None, None)
        valence, arousal = (self.card.intervals.half_width[target] for target in schema.TARGETS)
        return (valence, arousal)

    def check(self) -> None:
        """Build the model and run it once on features of the shape it will be shown.

        Raises
        ------
        CheckpointError
        """
        try_model(self.function(), self.card.model, self.feature_set, origin=self.origin)


def try_model(model: Function, name: str, feature_set: FeatureSet, *, origin: str) -> None:
    """Run a model once on features of the shape it will be shown.

    Raises
    ------
    CheckpointError
        Where it fails, or its output is not of the right shape or not finite.
    """
    features = np.zeros((1, feature_set.mel.n_mels, feature_set.segment_frames), np.float32)
    try:
        outputs = model(features)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{origin}: model={name!r} does not accept features of shape "
            f"(n_mels={features.shape[1]}, n_frames={features.shape[2]}): {error}"
        ) from error
    shape = outputs.shape
    if not np.isfinite(outputs).all():
        raise CheckpointError(
            f"{origin}: model={name!r} returns values that are not finite; its weights are damaged"
        )
    if len(shape) != 3 or shape[0] != 1 or shape[2] != len(schema.TARGETS):
        raise CheckpointError(
            f"{origin}: model={name!r} returned shape {shape}; "
            f"(batch, n_members, {len(schema.TARGETS)}) is needed"
        )


def _model_id(card: Card, digest: str) -> str:
    """Names all that a row of scores owes to the checkpoint: its weights, and its intervals."""
    if card.intervals is None:
        return digest[:12]
    return schema.content_id(
        {
            "weights_sha256": digest,
            "model": card.model,
            "parameters": card.parameters,
            "half_width": card.intervals.half_width,
        }
    )


def _parse_card(card_json: bytes, origin: str) -> Card:
    try:
        card = Card.model_validate_json(card_json)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'card'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise CheckpointError(f"{origin}: {CARD_NAME} is not a valid card: {faults}") from error
    if card.intervals is not None and set(card.intervals.half_width) != set(schema.TARGETS):
        raise CheckpointError(
            f"{origin}: intervals.half_width={card.intervals.half_width} must name "
            f"{' and '.join(schema.TARGETS)}; restore the card that was written with the weights"
        )
    if tuple(card.targets) != schema.TARGETS or card.scale != [-1, 1]:
        raise CheckpointError(
            f"{origin}: the card says targets={card.targets} on scale={card.scale}, but scores are "
            f"{list(schema.TARGETS)} on [-1, 1]; retrain or convert the model"
        )
    return card


def _fitting_feature_set(card: Card, origin: str) -> FeatureSet:
    """Today's feature set of the card's name, if it is still the one the model was trained on."""
    try:
        today = feature_set(card.features.name)
    except MerBatchError as error:
        raise CheckpointError(f"{origin}: {error}") from error
    # The id holds the decoder's version too. A newer decoder is no reason to refuse a model, other
    # numbers in its input are.
    ours = feature_shape(today).model_dump(exclude={"features_id"})
    theirs = card.features.model_dump(exclude={"features_id"})
    if ours != theirs:
        raise CheckpointError(
            f"{origin}: the model does not fit the features: it was trained on {theirs}, "
            f"feature set {today.name!r} is now {ours}; use a checkpoint trained on these features"
        )
    return today


def feature_shape(features: FeatureSet) -> FeatureShape:
    """What a card records of a feature set."""
    return FeatureShape(
        name=features.name,
        features_id=features.features_id,
        n_mels=features.mel.n_mels,
        segment_frames=features.segment_frames,
        unit=features.unit,
    )


def save_checkpoint(
    storage: Storage,
    folder: Location,
    *,
    state: dict[str, torch.Tensor],
    features: FeatureSet,
    **content: Any,
) -> Card:
    """Write a checkpoint; the weights first, so that a card never names weights not there.

    Parameters
    ----------
    storage : Storage
    folder : Location
    state : dict of str to Tensor
        The model's weights.
    features : FeatureSet
    **content
        The card's other entries: ``model, parameters, training_data, r2, notes, ...``.
    """
    import safetensors.torch

    weights = safetensors.torch.save({name: t.contiguous() for name, t in state.items()})
    card = Card(
        features=feature_shape(features),
        targets=list(schema.TARGETS),
        scale=[-1, 1],
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        **content,
    )
    storage.write(folder.child(WEIGHTS_NAME), weights)
    text = json.dumps(card.model_dump(), indent=2, ensure_ascii=False)
    storage.write(folder.child(CARD_NAME), (text + "\n").encode())
    return card


def read_checkpoint(uri: str, storage: Storage) -> Checkpoint:
    """Read a checkpoint; whether its weights fit is left to :meth:`Checkpoint.check`.

    Parameters
    ----------
    uri : str
        ``builtin``, or a folder or prefix.
    storage : Storage

    Raises
    ------
    CheckpointError, StorageError
    """
    # Imported here: the decoder's process needs checkpoints, but no client of any store.
    from mer_batch.storage import parse_uri

    if uri == "builtin":
        return builtin_checkpoint()
    folder = parse_uri(uri)
    card, weights = (storage.read(folder.child(name)) for name in (CARD_NAME, WEIGHTS_NAME))
    return Checkpoint(card, weights, origin=uri)


def builtin_checkpoint() -> Checkpoint:
    """The checkpoint that comes with the package."""
    folder = Path(__file__).parent / "builtin"
    return Checkpoint(
        (folder / CARD_NAME).read_bytes(), (folder / WEIGHTS_NAME).read_bytes(), origin="builtin"
    )
