"""Viewport prediction: training, ablations, evaluation (`suite`)."""
