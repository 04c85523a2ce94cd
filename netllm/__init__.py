"""A language model adapted for networking (NetLLM, SIGCOMM 2024): one of each part for all tasks."""
