"""Workers of `scripts/bench netllm`: what a decision and a training decision cost, here and in NetLLM's published code.

`ours` runs in this environment, `published` in one with the packages that NetLLM pins; `worker` is what they share.
"""
