"""Made-up music whose labels follow from how it was made."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from tests.datasets.releases import PlantedClip

RATE = 44_100
SECONDS = 3


def knocking(valence: float, arousal: float, *, seed: int) -> bytes:
    """An MP3 of knocks over a hum: quicker with arousal, louder with valence."""
    t = np.arange(SECONDS * RATE) / RATE
    rate_hz = 3.0 * 2.0**arousal
    knocks = np.random.default_rng(seed).standard_normal(len(t)) * np.exp(-9 * (t * rate_hz % 1))
    hum = np.sin(2 * np.pi * 220 * t)
    sound = 10 ** ((valence - 1) / 2) * (0.2 * knocks + 0.1 * hum)
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, format="MP3")
    return file.getvalue()


def planted_clips(n: int, *, seed: int) -> list[PlantedClip]:
    """Clips of artists with two each; valence and arousal are independent."""
    rng = np.random.default_rng(seed)
    clips = []
    for i in range(n):
        valence, arousal = rng.uniform(-0.9, 0.9, size=2).tolist()
        audio_bytes = knocking(valence, arousal, seed=1000 * seed + i)
        clips.append(PlantedClip(valence, arousal, f"artist {i // 2}", audio_bytes))
    return clips
