"""Checkpoints: what is written is read back, and what does not fit is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from mer_batch.checkpoint import Checkpoint, save_checkpoint
from mer_batch.config import StorageConfig
from mer_batch.errors import CheckpointError
from mer_batch.feature_sets import feature_set
from mer_batch.models import build_model
from mer_batch.storage import Storage, parse_uri


def save(
    folder: Path, *, seed: int = 0, model: str = "paper_model2", features: str = "paper"
) -> Path:
    torch.manual_seed(seed)
    network = build_model(model, {"n_mels": 40, "n_frames": 1292})
    save_checkpoint(
        Storage(StorageConfig()), parse_uri(str(folder)),
        model=model, parameters={"n_mels": 40, "n_frames": 1292},
        features=feature_set(features), state=network.state_dict(), training_data=[], r2={},
    )  # fmt: skip
    return folder


def load(folder: Path) -> Checkpoint:
    return Checkpoint(
        (folder / "card.json").read_bytes(),
        (folder / "weights.safetensors").read_bytes(),
        origin="here",
    )


def edit_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    card.update(changes)
    (folder / "card.json").write_text(json.dumps(card))


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = load(save(tmp_path, seed=3))
    checkpoint.check()
    torch.manual_seed(3)
    expected = build_model("paper_model2", {}).state_dict()
    for name, tensor in checkpoint.build().state_dict().items():
        assert torch.equal(tensor, expected[name])
    assert checkpoint.feature_set == feature_set("paper")


def test_the_id_is_that_of_the_weights(tmp_path: Path) -> None:
    ids = [load(save(tmp_path / str(seed), seed=seed)).model_id for seed in (0, 1, 0)]
    assert ids[0] == ids[2] != ids[1]


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    weights = bytearray((tmp_path / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(weights)
    with pytest.raises(
        CheckpointError, match=r"sha256=[0-9a-f]{64}, but card.json names [0-9a-f]{64}"
    ):
        load(tmp_path)


def test_a_model_for_other_features_is_refused_with_both_sides(tmp_path: Path) -> None:
    save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    edit_card(tmp_path, features={**card["features"], "n_mels": 64})
    with pytest.raises(CheckpointError, match=r"'n_mels': 64.*'n_mels': 40"):
        load(tmp_path)


def test_a_model_that_does_not_take_its_features_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not accept features of shape \(n_mels=80"):
        load(save(tmp_path, features="log_mel")).check()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"targets": ["arousal", "valence"]}, "targets=.*arousal.*valence.*scores are"),
        ({"scale": [1, 9]}, "scale="),
        ({"model": "paper_model3"}, "paper_model3.*paper_model"),
        ({"surprise": 1}, "surprise"),
        ({"parameters": {"n_mels": 41}}, "do not fit"),
    ],
)
def test_a_card_that_says_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    edit_card(save(tmp_path), **change)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path).check()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    network = build_model("paper_model2", {})
    state = network.state_dict()
    next(iter(state.values()))[0] = float("nan")
    save_checkpoint(
        Storage(StorageConfig()), parse_uri(str(tmp_path)),
        model="paper_model2", parameters={}, features=feature_set("paper"), state=state,
        training_data=[], r2={},
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not finite"):
        load(tmp_path).check()


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (trap,)

    import hashlib

    weights = pickle.dumps(Trap())
    (tmp_path / "checkpoint" / "weights.safetensors").write_bytes(weights)
    edit_card(tmp_path / "checkpoint", weights_sha256=hashlib.sha256(weights).hexdigest())
    with pytest.raises(CheckpointError):
        load(tmp_path / "checkpoint").check()
    assert not trap.exists()


@pytest.mark.parametrize("card", [b"", b"[]", b"{}", b"\xff\xfe", b"not json"])
def test_a_broken_card_is_refused(card: bytes) -> None:
    with pytest.raises(CheckpointError, match="not a valid card"):
        Checkpoint(card, b"", origin="here")


def test_intervals_come_from_the_card(tmp_path: Path) -> None:
    save(tmp_path)
    assert load(tmp_path).half_widths == (None, None)
    intervals: dict[str, Any] = {
        "level": 0.9, "calibrated_on": "a set",
        "half_width": {"arousal": 0.3, "valence": None}, "coverage": {"arousal": 0.9},
    }  # fmt: skip
    edit_card(tmp_path, intervals=intervals)
    assert load(tmp_path).half_widths == (None, 0.3)
    edit_card(tmp_path, intervals=intervals | {"half_width": {"arousal": -0.3, "valence": 0.1}})
    with pytest.raises(CheckpointError, match=r"intervals.*greater than or equal to 0"):
        load(tmp_path)
    edit_card(tmp_path, intervals=intervals | {"half_width": {"arousal": 0.3}})
    with pytest.raises(CheckpointError, match="must name valence and arousal"):
        load(tmp_path)


def test_other_intervals_are_another_id(tmp_path: Path) -> None:
    """They are in every row of scores: calibrated anew, tracks are scored anew."""
    save(tmp_path)
    ids = [load(tmp_path).model_id]
    for reach, level in ((0.3, 0.9), (0.4, 0.9), (0.3, 0.9)):
        half_width = {"arousal": reach, "valence": None}
        intervals = {
            "level": level, "calibrated_on": "a set", "half_width": half_width, "coverage": {},
        }  # fmt: skip
        edit_card(tmp_path, intervals=intervals)
        ids.append(load(tmp_path).model_id)
    assert ids[1] == ids[3]
    assert len(set(ids)) == 3
    edit_card(tmp_path, notes="what a person may change")
    assert load(tmp_path).model_id == ids[3]
    edit_card(tmp_path, intervals=None)
    assert load(tmp_path).model_id == ids[0] == load(tmp_path).card.weights_sha256[:12]


def test_a_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    weights = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="restore the file"):
        load(tmp_path)
    card = (tmp_path / "card.json").read_text()
    (tmp_path / "card.json").write_text(card[: len(card) // 2])
    with pytest.raises(CheckpointError, match=r"card\.json is not a valid card"):
        load(tmp_path)
