"""The features of the paper: 1292 frames of 40 mel bands, raw power, no overlap.

References
----------
Quan, Y. and Dong, M. "Music Emotion Recognition Using Deep Convolutional Neural Networks", 2020.
"""

from mer_batch.audio.mel import MelParameters
from mer_batch.feature_sets import FeatureSet

FEATURE_SET = FeatureSet(
    name="paper",
    mel=MelParameters(
        sample_rate=44_100, n_fft=1024, hop_length=1024, n_mels=40, fmin=0.0, fmax=22_050.0
    ),
    unit="power",
    fixed_length=True,
)
