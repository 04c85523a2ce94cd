"""The engine: links, network, trials, simulator twins, records and reports."""
