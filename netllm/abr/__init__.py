"""Adaptive bitrate: experience and its teachers, training, the choice among adapters, ablations, evaluation (`suite`)."""
