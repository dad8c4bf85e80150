"""What every door of the command line shares: errors become one message and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from secure_fed.errors import SecureFedError

_INTERRUPTED = 130


@contextmanager
def said_plainly() -> Iterator[None]:
    """Turn our errors into one message and their exit code; anything else is a bug and keeps its traceback."""
    try:
        yield
    except SecureFedError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.secho("interrupted", fg=typer.colors.YELLOW, err=True)
        raise typer.Exit(_INTERRUPTED) from None
