"""The one error that a user causes: bad input, told in one sentence before any work starts."""


class InputError(ValueError):
    """What was given, and what is accepted, in one sentence.

    The command line prints it without a traceback and leaves with exit code 2; in a notebook it is the last line
    of the cell's error and the `first_error` of the run record.
    """
