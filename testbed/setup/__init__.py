"""What a host must have before a run, and how it gets it. Standard library only: it runs before anything is installed."""
