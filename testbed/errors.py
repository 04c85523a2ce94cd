"""What went wrong and whose turn it is: errors that the command line turns into one sentence."""


class UserError(Exception):
    """The user's input can't be used. The text is one sentence: what, where, the value seen, the value wanted. Exit code 2."""


class TestbedError(Exception):
    """The testbed itself failed: the text says which step, on what. Exit code 1."""
