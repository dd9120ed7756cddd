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


def as_user_error(error: SynthError | OSError | MemoryError) -> SynthError:
    """Return what the user can do about a full disk, a missing right or too little memory."""
    if isinstance(error, SynthError):
        return error
    if isinstance(error, MemoryError):
        return SynthError("memory ran out", hint="use fewer --workers, or smaller scans")
    place = f"{error.filename}: " if error.filename else ""
    return SynthError(
        f"{place}{error.strerror or first_line(error)}",
        hint="check the path, its permissions and the free space",
    )


def printable(text: str) -> str:
    """Escape control characters: a file's name must not move the cursor of a terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: str, most: int = 600) -> str:
    """Return a message as one printable line of bounded length."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"
