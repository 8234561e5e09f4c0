"""What is done to one track, by name; the same in every engine.

Each is made once in a process and then called with one path after another.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable
from pathlib import Path

#: Path of a file to its valence and arousal.
Tagger = Callable[[str], tuple[float, float]]


def arguments() -> argparse.Namespace:
    """The command line of an engine's job: ``tracks``, ``output``, ``tagger``, ``n_cores``."""
    options = argparse.ArgumentParser()
    options.add_argument("tracks", help="a Parquet file of track_id and path")
    options.add_argument("output", help="a folder to write Parquet to")
    options.add_argument("--tagger", choices=sorted(_TAGGERS), required=True)
    options.add_argument("--n-cores", type=int, default=os.cpu_count() or 1)
    return options.parse_args()


@functools.cache
def tagger(name: str) -> Tagger:
    """The tagger of this process, its libraries imported and its model built once."""
    return _TAGGERS[name]()


def _decode() -> Tagger:
    """Decoding alone: soundfile into one buffer that is used again and again.

    In one read: soundfile seeks after each, which makes the decoder start anew.
    """
    import numpy as np
    import soundfile

    buffer = np.empty(0, np.float32)

    def decode(path: str) -> tuple[float, float]:
        nonlocal buffer
        with soundfile.SoundFile(path) as sound:
            n_values = sound.frames * sound.channels
            if n_values > len(buffer):
                buffer = np.empty(n_values, np.float32)
            read = sound.read(out=buffer[:n_values].reshape(-1, sound.channels))
            # A stream without a tag has only an estimate of its length.
            assert len(read) > 0.98 * sound.frames, f"{path} is cut short"
        return math.nan, math.nan

    return decode


def _kernel() -> Tagger:
    """Our own: decoding, mono, mel and model in one pass over reused buffers."""
    from mer_batch.audio.decode import AudioLimits
    from mer_batch.checkpoint import builtin_checkpoint
    from mer_batch.extract import Extractor
    from mer_batch.score import Scorer

    checkpoint = builtin_checkpoint()
    extractor = Extractor(checkpoint.feature_set, AudioLimits())
    scorer = Scorer(checkpoint.function())

    def tag(path: str) -> tuple[float, float]:
        return scorer.score(extractor.extract(Path(path).read_bytes()).segments).mean

    return tag


def _librosa() -> Tagger:
    """What one writes instead: ``librosa.load``, ``melspectrogram``, and the same model in torch.

    At the rate that the features are made of, which is the files' own: nothing is resampled.
    """
    import librosa

    from mer_batch.checkpoint import builtin_checkpoint
    from mer_batch.models import on_device
    from mer_batch.score import Scorer

    checkpoint = builtin_checkpoint()
    features, scorer = checkpoint.feature_set, Scorer(on_device(checkpoint.build(), "cpu"))
    mel = features.mel

    def tag(path: str) -> tuple[float, float]:
        samples, rate = librosa.load(path, sr=mel.sample_rate)
        power = librosa.feature.melspectrogram(
            y=samples, sr=rate, n_fft=mel.n_fft, hop_length=mel.hop_length,
            n_mels=mel.n_mels, fmin=mel.fmin, fmax=mel.fmax,
        )  # fmt: skip
        return scorer.score(features.segments(power.T)[0]).mean

    return tag


def _essentia() -> Tagger:
    """Essentia's loader and mel bands as one streaming network in C++, the same model in torch.

    The network is built once and shown one file after another: building it anew for each takes
    longer, and its memory is not given back.
    """
    import essentia
    import essentia.streaming as es
    import numpy as np

    from mer_batch.checkpoint import builtin_checkpoint
    from mer_batch.models import on_device
    from mer_batch.score import Scorer

    essentia.log.infoActive = essentia.log.warningActive = False
    checkpoint = builtin_checkpoint()
    features, scorer = checkpoint.feature_set, Scorer(on_device(checkpoint.build(), "cpu"))
    mel = features.mel
    loader, pool = es.MonoLoader(), essentia.Pool()
    # Frames centred on the first sample and on those a hop apart, as librosa's.
    cutter = es.FrameCutter(frameSize=mel.n_fft, hopSize=mel.hop_length, startFromZero=False)
    window = es.Windowing(
        type="hann", symmetric=False, normalized=False, zeroPhase=False, size=mel.n_fft
    )
    spectrum = es.Spectrum(size=mel.n_fft)
    bands = es.MelBands(
        numberBands=mel.n_mels, sampleRate=mel.sample_rate, inputSize=1 + mel.n_fft // 2,
        lowFrequencyBound=mel.fmin, highFrequencyBound=mel.fmax, warpingFormula="slaneyMel",
        weighting="linear", normalize="unit_tri",
    )  # fmt: skip
    loader.audio >> cutter.signal
    cutter.frame >> window.frame >> spectrum.frame
    spectrum.spectrum >> bands.spectrum
    bands.bands >> (pool, "mel")

    def tag(path: str) -> tuple[float, float]:
        pool.clear()
        loader.configure(filename=path, sampleRate=mel.sample_rate)
        essentia.reset(loader)
        essentia.run(loader)
        power = np.ascontiguousarray(pool["mel"], dtype=np.float32)
        return scorer.score(features.segments(power)[0]).mean

    return tag


_TAGGERS: dict[str, Callable[[], Tagger]] = {
    "decode": _decode,
    "kernel": _kernel,
    "librosa": _librosa,
    "essentia": _essentia,
}
