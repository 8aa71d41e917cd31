"""Classifiers of real versus generated: networks, training, scoring, calibration, metrics,
heatmaps.
"""
