"""What the evaluations of all tasks share: how tables are laid out, and where results come from."""
