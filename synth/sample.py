"""Runs `python -m synth.sample` as `python -m synth sample`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "sample")
    runpy.run_module("synth", run_name="__main__", alter_sys=True)
