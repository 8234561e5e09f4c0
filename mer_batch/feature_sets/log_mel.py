"""What our own model is shown: decibels of 80 narrow bands, at each track's own length.

Raw power spans three to five orders of magnitude within a clip; decibels do not. A window of
46 ms and bands less than a semitone apart let the partials of a chord stand out as peaks, which
is what the statistics of pitch live on. Above 16 kHz an MP3 holds its encoder's choices.
"""

from mer_batch.audio.mel import MelParameters
from mer_batch.feature_sets import FeatureSet

FEATURE_SET = FeatureSet(
    name="log_mel",
    mel=MelParameters(
        sample_rate=44_100, n_fft=2048, hop_length=2048, n_mels=80, fmin=30.0, fmax=16_000.0
    ),
    unit="dB",
)
