"""The program `synth`, also as `python -m synth VERB`."""

import os
import sys

# `python -m` looks for modules in the current folder first: a scan's folder may hold a numpy.py.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if sys.path[:1] in ([""], [os.getcwd()]) and os.path.realpath(os.getcwd()) != _ROOT:
    del sys.path[0]

import signal  # noqa: E402

from synth.base import stopping  # noqa: E402


def main() -> int:
    """Run the command line; from the first instant on, a signal ends it with one sentence."""
    for number in stopping.SIGNALS:
        signal.signal(number, stopping.leave)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # ty: ignore[missing-union-attribute]

    from synth.cli import main as run

    code = run()
    try:
        sys.stdout.flush()
    except OSError as error:
        sys.stderr.write(f"synth: the output cannot be written: {error.strerror}\n")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = code or 2
    for number in stopping.SIGNALS:  # all is done: nothing is left to stop
        signal.signal(number, signal.SIG_IGN)
    if code in stopping.STOPPED:
        sys.stderr.flush()
        os._exit(code)  # Python itself would exit as killed where Ctrl-C met an exec()
    return code


if __name__ == "__main__":
    sys.exit(main())
