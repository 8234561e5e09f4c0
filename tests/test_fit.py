"""The training loop: exact when resumed, clear when it cannot go on, right in its records."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mer_batch import metrics
from mer_batch.errors import TrainingError
from mer_batch.fit import EpochRecord, FitSettings, State, fit
from mer_batch.models import build_model
from mer_batch.network import Batch, predict, standardise

CPU = torch.device("cpu")
SMALL = {"n_mels": 8, "channels": [4, 8], "n_hidden": 8}


def planted(n_clips: int, *, seed: int, n_frames: int = 12, variable: bool = False) -> Batch:
    """Arousal is the level, valence what the upper half of the bands has more than the lower."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.rand(n_clips, 2, generator=rng) * 1.6 - 0.8
    upper = torch.where(torch.arange(8) >= 4, 1.0, -1.0)
    level = labels[:, 1, None] * 10 + labels[:, :1] * upper * 6 - 40
    mels = level[:, :, None] + torch.randn(n_clips, 8, n_frames, generator=rng) * 2
    lengths = torch.full((n_clips,), n_frames)
    if variable:
        lengths = torch.randint(5, n_frames + 1, (n_clips,), generator=rng)
        lengths[0] = n_frames
    ids = [f"clip {seed}.{row}" for row in range(n_clips)]
    return Batch(ids, mels, lengths, labels)


def shuffled(whole: Batch, batch_size: int) -> Callable[[int], Iterator[Batch]]:
    def batches(epoch: int) -> Iterator[Batch]:
        order = np.random.default_rng(epoch).permutation(len(whole.track_ids))
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            yield Batch(
                [whole.track_ids[row] for row in rows],
                whole.mels[rows], whole.n_frames[rows], whole.labels[rows],
            )  # fmt: skip

    return batches


def small_model(**parameters: Any) -> nn.Module:
    torch.manual_seed(3)
    model = build_model("log_mel_cnn", {**SMALL, **parameters})
    standardise(model, [planted(64, seed=0)])
    return model


@pytest.mark.parametrize("variable", [False, True])
def test_a_planted_rule_is_learned(variable: bool) -> None:
    model = small_model(dropout=0.1)
    train, held_out = (planted(n, seed=s, variable=variable) for n, s in ((192, 1), (64, 2)))
    settings = FitSettings(learning_rate=0.01, epochs=25, schedule="cosine", warmup_epochs=2)
    result = fit(model, shuffled(train, 32), lambda: [held_out], settings, device=CPU, seed=0)
    assert not model.training
    scores = predict(model, [held_out], CPU)
    assert scores.track_ids == held_out.track_ids
    labels = held_out.labels.double().numpy()
    assert (metrics.r2(labels, scores.mean) > 0.8).all()
    # The record tells the same as a measurement from outside.
    best = result.history[result.best_epoch]
    np.testing.assert_allclose(best.validation_r2, metrics.r2(labels, scores.mean), atol=1e-5)
    loss = ((labels - scores.mean) ** 2).mean()
    assert best.validation_loss == pytest.approx(loss, rel=1e-5)


def test_resumed_training_equals_undisturbed_training_to_the_bit() -> None:
    train, held_out = planted(60, seed=1), planted(20, seed=2)
    settings = FitSettings(epochs=6, optimizer="adamw", weight_decay=0.01, schedule="cosine")
    arguments = (shuffled(train, 16), lambda: [held_out], settings)
    files: list[bytes] = []

    def keep(record: EpochRecord, take_state: Callable[[], State]) -> None:
        stream = io.BytesIO()
        torch.save(take_state(), stream)
        files.append(stream.getvalue())
        torch.rand(record.epoch + 1)  # what others draw meanwhile does not matter

    whole = small_model()
    undisturbed = fit(whole, *arguments, device=CPU, seed=5, on_epoch=keep)
    assert len(files) == 6
    for stopped_after in (1, 3, 6):
        torch.manual_seed(stopped_after)
        again = build_model("log_mel_cnn", SMALL)
        state = torch.load(io.BytesIO(files[stopped_after - 1]), weights_only=True)
        resumed = fit(again, *arguments, device=CPU, seed=5, resume=state)
        assert resumed == undisturbed
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


def test_dropout_follows_from_the_seed_alone() -> None:
    def weights(seed: int) -> Tensor:
        model = small_model(dropout=0.5)
        fit(model, shuffled(planted(32, seed=1), 8), None, FitSettings(epochs=1), device=CPU,
            seed=seed)  # fmt: skip
        return torch.cat([parameter.flatten() for parameter in model.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


class _Constant(nn.Module):
    """Guesses one number, and takes any step that it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = nn.Parameter(torch.zeros(1, 1, 2))

    def forward(self, features: Tensor) -> Tensor:
        return self.guess.expand(len(features), 1, 2)


def test_the_best_epoch_is_kept_and_patience_ends_it() -> None:
    # Training pulls the guess up to 1; validation wants 0.35, so it gets better, then worse.
    train = Batch(["a"], torch.zeros(1, 8, 4), torch.tensor([4]), torch.ones(1, 2))
    watch = Batch(["b"], torch.zeros(1, 8, 4), torch.tensor([4]), torch.full((1, 2), 0.35))
    model = _Constant()
    settings = FitSettings(learning_rate=0.1, epochs=50, patience=3)
    result = fit(model, lambda epoch: [train], lambda: [watch], settings, device=CPU, seed=0)
    losses = [record.validation_loss for record in result.history]
    assert result.best_epoch == int(np.argmin(losses)) in (2, 3)
    assert len(result.history) == result.best_epoch + 1 + 3
    assert float(((model.guess.detach() - 0.35) ** 2).mean()) == pytest.approx(
        min(losses), rel=1e-4
    )
    assert all(math.isnan(r2) for r2 in result.history[0].validation_r2 or [0])
    last = _Constant()
    settings = FitSettings(learning_rate=0.1, epochs=50, patience=3, restore_best=False)
    fit(last, lambda epoch: [train], lambda: [watch], settings, device=CPU, seed=0)
    assert last.guess.detach().mean() > model.guess.detach().mean() + 0.1


def test_weights_say_how_much_a_clip_counts() -> None:
    labels = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    weights = torch.tensor([0.5, 1.5])
    batch = Batch(["a", "b"], torch.zeros(2, 8, 4), torch.tensor([4, 4]), labels, weights=weights)
    model = _Constant()
    settings = FitSettings(learning_rate=0.05, epochs=300, schedule="cosine")
    fit(model, lambda epoch: [batch], None, settings, device=CPU, seed=0)
    torch.testing.assert_close(
        model.guess.flatten(), torch.tensor([0.25, -0.25]), atol=1e-3, rtol=0
    )


def test_the_rate_warms_up_and_falls_like_a_cosine() -> None:
    settings = FitSettings(learning_rate=1.0, epochs=12, schedule="cosine", warmup_epochs=2)
    rates = [settings.rate(epoch) for epoch in range(12)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[7] == pytest.approx(0.5)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.05
    assert FitSettings(learning_rate=0.1).rate(70) == 0.1


def test_a_loss_that_is_not_finite_names_epoch_batch_and_clips() -> None:
    good, bad = planted(8, seed=1), planted(8, seed=2)
    bad.mels[3, 2, 1] = math.nan
    message = r"epoch 1, batch 1: loss=nan.*8 clips begin with clip 2\.0, clip 2\.1"
    with pytest.raises(TrainingError, match=message):
        fit(
            small_model(), lambda epoch: [good, bad if epoch else good], None, FitSettings(),
            device=CPU, seed=0,
        )  # fmt: skip


def test_what_cannot_be_done_is_refused() -> None:
    model = small_model()
    with pytest.raises(TrainingError, match="patience=2"):
        fit(model, lambda epoch: [], None, FitSettings(patience=2), device=CPU, seed=0)
    with pytest.raises(TrainingError, match="n_clips=0"):
        fit(model, lambda epoch: [], None, FitSettings(), device=CPU, seed=0)
    with pytest.raises(TrainingError, match=r"paper_model1.*standardise=false"):
        standardise(build_model("paper_model1", {}), [])
    with pytest.raises(TrainingError, match="none came"):
        standardise(model, [])


def test_standardising_looks_at_real_frames_only_and_never_at_all_clips_at_once() -> None:
    whole = planted(40, seed=4, variable=True)
    whole.mels[:, 7] = -100.0
    for row, length in enumerate(whole.n_frames.tolist()):
        whole.mels[row, :, length:] = 1e6
    model = build_model("log_mel_cnn", SMALL)
    standardise(model, shuffled(whole, 7)(0))
    frames = np.concatenate(
        [whole.mels[row, :, :n].numpy() for row, n in enumerate(whole.n_frames.tolist())], axis=1
    ).astype(np.float64)
    np.testing.assert_allclose(model.get_buffer("centre"), frames.mean(axis=1), rtol=1e-5)
    expected = frames.std(axis=1)
    expected[7] = 1.0  # a band that never moves
    np.testing.assert_allclose(model.get_buffer("scale"), expected, rtol=1e-5)


def test_a_tracks_scores_are_its_segments_and_members_together() -> None:
    members = [{"model": "log_mel_cnn", "parameters": SMALL}] * 2
    torch.manual_seed(0)
    model = build_model("ensemble", {"members": members})
    batch = planted(5, seed=1, variable=True)
    batch = Batch(list("abaca"), batch.mels, batch.n_frames, batch.labels)
    scores = predict(model, [batch], CPU)
    with torch.inference_mode():
        values = torch.cat(
            [model(batch.mels[row : row + 1, :, :n]) for row, n in enumerate(batch.n_frames)]
        ).double()
    assert scores.track_ids == ["a", "b", "c"]
    assert scores.n_segments.tolist() == [3, 1, 1]
    track = values[[0, 2, 4]].reshape(-1, 2)
    np.testing.assert_allclose(scores.mean[0], track.mean(dim=0), atol=1e-5)
    np.testing.assert_allclose(scores.std[0], track.std(dim=0, correction=0), atol=1e-5)
    alone = predict(build_model("log_mel_cnn", SMALL), [batch], CPU)
    assert np.isnan(alone.std[1]).all()


def test_a_model_that_knows_no_padding_is_shown_none() -> None:
    model = build_model("pooled_gp", {"n_members": 2})
    torch.manual_seed(0)
    model.get_buffer("coefficients").normal_()
    lengths = torch.tensor([40, 25, 40, 30])
    mels = torch.randn(4, 80, 40) * 10 - 40
    batch = Batch(list("abcd"), mels, lengths, torch.zeros(4, 2))
    scores = predict(model, [batch], CPU)
    with torch.inference_mode():
        alone = [
            model(mels[row : row + 1, :, :n]).mean(dim=(0, 1)) for row, n in enumerate(lengths)
        ]
    np.testing.assert_allclose(scores.mean, torch.stack(alone).double(), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_the_rule_is_learned_on_a_gpu_too(mixed_precision: bool) -> None:
    model, held_out = small_model(), planted(64, seed=2)
    settings = FitSettings(learning_rate=0.01, epochs=20, mixed_precision=mixed_precision)
    result = fit(model, shuffled(planted(192, seed=1), 32), lambda: [held_out], settings,
                 device=torch.device("cuda"), seed=0)  # fmt: skip
    assert min(result.history[result.best_epoch].validation_r2 or [0]) > 0.8
