"""SynthError, the only exception that a user sees."""


class SynthError(Exception):
    """Something the user can mend: what was found, and how to go on.

    The command line prints it as one line and exits with code 2, without a traceback.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple:
        """Survive the trip back from a worker process, keyword argument and all."""
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(kind: type[SynthError], message: str, hint: str) -> SynthError:
    return kind(message, hint=hint)


def first_line(error: Exception) -> str:
    """Return what an error of a library says, in one line."""
    return (str(error) or repr(error)).splitlines()[0]
