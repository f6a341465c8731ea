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
        if value is not None and not value >= bound:  # nor NaN
            raise InputError(f"{prefix}{name}={value}; it must be at least {bound}.")


def check_seeds(config: object) -> None:
    """Raise `InputError` for a seed that is none: keys are made of 32 bits, and larger numbers would wrap around."""
    for name in ("seed", "data_seed"):
        value = getattr(config, name, None)
        if value is not None and not 0 <= value < 2**32:
            raise InputError(f"{name}={value}; it must be at least 0 and below {2**32}.")
