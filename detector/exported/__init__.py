"""Detectors as graphs that run without torch: made, run, and found again in the user's cache."""
