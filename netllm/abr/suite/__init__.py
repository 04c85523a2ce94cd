"""`scripts/evaluate abr`: any policies in the simulator, on the settings they were made for and on others, with their intervals.

| module | what it does |
| --- | --- |
| `settings` | the named settings: traces, video, path, and what in them is unseen |
| `contenders` | the policies, adapters and seeds that are measured, and what identifies each |
| `play` | plays them: a language model for all traces in step, others one by one |
| `cells` | keeps what is done, so that an evaluation that was interrupted goes on |
| `analysis` | means, intervals, paired differences, shares of the optimum |
| `sentences`, `page`, `drawings`, `markdown`, `paper`, `terminal` | how they are shown |
"""
