"""Tag a whole music catalog with emotion: valence and arousal, on Ray, exactly once."""

__version__ = "0.1.0"
