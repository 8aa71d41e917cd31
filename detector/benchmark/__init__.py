"""Detectors against each other: every one asked for every image, statistics, and a report."""
