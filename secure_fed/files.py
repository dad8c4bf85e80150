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


def write_durably(path: Path, data: bytes, *, overwrite: bool, sync_name: bool = True) -> None:
    """Write a 0600 file whole or not at all, and synced; raises ConfigError where it stands and may not be replaced.

    Without `sync_name` a power cut may bring back the file that stood there before, until the caller has called
    `sync_folder`; never a torn one.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    stays = True
    try:
        with os.fdopen(handle, "wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
            os.fsync(handle)
        if overwrite:
            os.replace(name, path)
            stays = False
        else:
            os.link(name, path)  # fails where the name is taken, unlike a rename
    except FileExistsError as error:
        raise ConfigError(f"The file {path} exists already and is not overwritten.") from error
    finally:
        if stays:
            Path(name).unlink(missing_ok=True)
    if sync_name:
        sync_folder(path.parent)


def require_place_for(path: Path) -> None:
    """Raise DataError where no file can come to `path`, whatever its text; asked before long work."""
    if path.is_dir():
        raise DataError(f"{path} cannot be written: it is a folder. Name a file in it, or another one.")
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {path.parent}. Make it first.")


def write_whole(path: Path, text: str) -> Path:
    """Write a text file whole or not at all; raises DataError where there is no place for it, or it is refused."""
    require_place_for(path)
    whole: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            whole = Path(file.name)
            file.write(text)
        whole.chmod(0o644)
        whole.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}. Make room and the folder writable.") from error
    finally:
        if whole is not None:
            whole.unlink(missing_ok=True)
    return path
