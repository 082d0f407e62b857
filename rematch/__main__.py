"""``python -m rematch``: what rules call starts in milliseconds and is run by the warm server; the rest is for people."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``rematch`` command."""
    arguments = sys.argv[1:]
    from rematch.jobs import JOBS

    if not arguments or arguments[0] not in JOBS or {"-h", "--help"} & set(arguments):
        from rematch.cli import app

        app()
        return
    from rematch.warm import submit

    code = submit(arguments)
    if code is None:
        from rematch.jobs import run_job

        code = run_job(arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
