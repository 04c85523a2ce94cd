"""NetLLM for cluster job scheduling: what differs from the other tasks (`netllm.tasks.cjs` has the task itself).

| module | content |
| --- | --- |
| `graph` | the encoder of stages, jobs and cluster, the heads that point at a stage and a number of executors, the model |
| `experience` | sessions and labels by look-ahead |
| `batches` | windows of decisions as batches to learn from |
| `adapt` | `scripts/adapt cjs` |
"""
