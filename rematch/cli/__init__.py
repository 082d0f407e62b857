"""The command line for people: what can run, what would run, what ran, what it says. Thin: every command prints what the
engine's modules compute.
"""

from rematch.cli.app import app

__all__ = ["app"]
