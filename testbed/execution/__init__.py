"""Schedules on real executors: the engine's instructions carried out by the workers of a Dask cluster."""
