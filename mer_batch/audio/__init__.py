"""Kernels: bytes to waveform to mel spectrogram. Pure functions, no files and no URIs."""
