"""Files that are written whole or not at all: secrets that survive a power cut, and results for people."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from secure_fed.errors import ConfigError, DataError


def sync_folder(folder: Path) -> None:
    """Make a new or renamed entry of `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_durably(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write a 0600 file whole or not at all, and synced; raises ConfigError where it stands and may not be replaced."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            Path(name).replace(path)
        else:
            os.link(name, path)  # fails where the name is taken, unlike a rename
    except FileExistsError as error:
        raise ConfigError(f"The file {path} exists already and is not overwritten.") from error
    finally:
        Path(name).unlink(missing_ok=True)
    sync_folder(path.parent)


def write_whole(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; raises DataError where the folder refuses it."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            file.write(text)
        whole = Path(file.name)
        try:
            whole.chmod(0o644)
            whole.replace(path)
        finally:
            whole.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Make room and the folder writable.") from error
    return path
