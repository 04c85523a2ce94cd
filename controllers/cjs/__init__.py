"""Cluster job scheduling policies: one file each, named like the policy."""
