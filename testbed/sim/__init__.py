"""Twins of the workloads on a virtual clock."""
