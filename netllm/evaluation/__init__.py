"""What the evaluations of all tasks share: how numbers are written, how tables are laid out, and where results come from."""
