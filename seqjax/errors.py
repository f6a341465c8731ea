"""What goes wrong: wrong options, files or prompts, which a user can put right, and training that cannot go on."""


class InputError(ValueError):
    """Bad input. The message names the argument, the value and the remedy; the command line exits with status 2."""


class TrainingError(RuntimeError):
    """Training cannot go on, or has come to nothing."""


def check_least(config: object, prefix: str = "", /, **least: int) -> None:
    """Raise `InputError` for a field that is below its least value; None is no value.

    >>> from types import SimpleNamespace
    >>> check_least(SimpleNamespace(steps=0, limit=None), "loop.", steps=1, limit=1)
    Traceback (most recent call last):
    seqjax.errors.InputError: loop.steps=0; it must be at least 1.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise InputError(f"{prefix}{name}={value}; it must be at least {bound}.")
