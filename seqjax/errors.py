"""What a user can put right: wrong options, files or prompts."""


class InputError(ValueError):
    """Bad input. The message names the argument, the value and the remedy; the command line exits with status 2."""
