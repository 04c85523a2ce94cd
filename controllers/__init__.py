"""The contract of a policy, the policies (one file each) and the decision service."""
