"""Network namespaces as hosts, how they are wired, and the record of all that is ours on this machine."""
