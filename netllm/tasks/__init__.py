"""One file per task, with only what differs: which encoders, which head, what is observed."""
