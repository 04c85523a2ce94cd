"""`scripts/evaluate cjs`: schedulers in the simulator on settings seen and unseen, with paired intervals.

| module | what it does |
| --- | --- |
| `settings` | clusters, numbers of jobs and seeds; what was published for them |
| `play` | sessions: those of a language model in step, all others one by one |
| `analysis` | means, ratios and paired differences with their intervals |
| `page` | how they are shown, in the terminal, in docs/cjs.md and in the adapter's card |
| `run` | one evaluation from beginning to end |
"""
