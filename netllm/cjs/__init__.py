"""Cluster job scheduling: what differs from the other tasks (`netllm.tasks.cjs` has the task itself, `netllm.graph` its encoder and heads).

| module | content |
| --- | --- |
| `experience` | sessions and labels by look-ahead |
| `batches` | windows of decisions as batches to learn from |
| `adapt` | `scripts/adapt cjs` |
| `reader`, `trust` | how a schedule is read and decided; how far a decision leans on a rule, and how that was chosen |
| `suite` | `scripts/evaluate cjs` |
"""
