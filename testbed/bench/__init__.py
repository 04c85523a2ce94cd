"""`scripts/bench`: measures this project's links beside other emulators, from outside and in one run."""
