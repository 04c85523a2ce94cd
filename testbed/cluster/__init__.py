"""The scheduling side of a cluster: a state machine of jobs, stages, tasks and executors, without clock, network or durations."""
