"""Policies that predict where a viewer will look, one file each."""
