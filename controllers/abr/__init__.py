"""Adaptive-bitrate policies: one file each, named like the policy. Discovery reads this folder."""
