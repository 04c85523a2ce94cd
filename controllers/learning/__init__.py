"""Training of the learned baselines: playbacks in batches, policy optimisation, what each baseline adds, `scripts/train`."""
