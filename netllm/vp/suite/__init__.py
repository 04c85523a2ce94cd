"""`scripts/evaluate vp`: predictors of viewports on recorded head movement, with their intervals.

| module | what it does |
| --- | --- |
| `settings` | which windows: where they lie, how long history and horizon are |
| `analysis` | errors of each policy, intervals over viewers and over videos, paired differences |
| `page` | how they are shown, in the terminal and in docs/vp.md |
| `run` | one evaluation from beginning to end |
"""
