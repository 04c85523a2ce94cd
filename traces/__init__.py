"""Bandwidth traces: reading, writing, finding, splitting and modelling them."""
