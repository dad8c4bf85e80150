"""The folder of a sweep: its lock, its manifest, and a run folder for each cell with the file that says its end.

Whatever has no readable `cell.json` is not finished: its folder is removed before the cell runs anew.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from secure_fed.errors import ConfigError, DataError
from secure_fed.files import write_whole
from secure_fed.sweep.record import BROKEN, CELLS, MANIFEST, RESULT, CellError, CellResult, Manifest

LOCK = "sweep.lock"
_NEXT_TO_NOTHING = 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


def is_sweep(path: Path) -> bool:
    """Whether a sweep lies at `path`."""
    return (path / MANIFEST).is_file()


def no_room_left(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, says that the disk or the quota is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


class SweepFolder:
    """A sweep's folder, which only the holder of its lock writes to."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the folder, made if need be, and give the lock's descriptor; raises ConfigError where another holds it.

        Who inherits the descriptor holds the lock too: a worker that outlives its parent keeps others out.
        """
        path = self.root / LOCK
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                f"sweep.dir={self.root} cannot be written: {error.strerror}; give a folder that can"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip()
            os.close(handle)
            raise ConfigError(
                f"{self.root} is in use by another sweep ({holder or 'unknown process'}): wait for it, stop it, or "
                "give another sweep.dir"
            ) from error
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            yield handle
        finally:
            os.close(handle)

    def is_new(self) -> bool:
        """Whether nothing lies here but perhaps a lock; raises ConfigError where something else does."""
        if is_sweep(self.root):
            return False
        if self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"sweep.dir={self.root} is a file; give a folder that does not exist yet")
        if self.root.is_dir() and any(entry.name != LOCK for entry in self.root.iterdir()):
            raise ConfigError(
                f"sweep.dir={self.root} exists and holds no sweep: a sweep never writes among other files; give a "
                "folder that does not exist yet"
            )
        return True

    def manifest(self) -> Manifest:
        """What the sweep is; raises ConfigError where none lies here, DataError where it is damaged or of another."""
        path = self.root / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"{self.root} is not a sweep's folder: it has no {MANIFEST}") from error
        try:
            tree = json.loads(text)
        except ValueError as error:
            raise DataError(f"{path} is damaged: it is no JSON; run the sweep anew in another folder") from error
        expected = Manifest.model_fields["schema_"].default
        found = tree.get("schema") if isinstance(tree, dict) else None
        if found != expected:
            raise DataError(
                f"{path} has schema {found!r}, and this version of secure_fed reads {expected!r}: use the version that "
                "wrote it, or run the sweep anew in another folder"
            )
        try:
            return Manifest.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path} is damaged: {where}: {first['msg']}; was it changed by hand?") from error

    def save_manifest(self, manifest: Manifest) -> None:
        """Write what the sweep is, before its first cell."""
        write_whole(self.root / MANIFEST, manifest.model_dump_json(by_alias=True, indent=2) + "\n")

    def cell(self, cell: str) -> Path:
        """The run folder of a cell by its id."""
        return self.root / CELLS / cell

    def result(self, cell: str) -> CellResult | None:
        """What a finished cell gave; None where it is not finished, or what it wrote is torn or another cell's."""
        try:
            result = CellResult.model_validate_json((self.cell(cell) / RESULT).read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValidationError):
            return None
        return result if result.id == cell else None

    def clear(self, cell: str) -> Path:
        """Remove what an interrupted or broken cell left, and return its path, where nothing lies now."""
        path = self.cell(cell)
        path.parent.mkdir(exist_ok=True)
        if path.is_symlink() or path.is_file():
            path.unlink()  # never follow a link out of the sweep
        elif path.exists():
            shutil.rmtree(path)
        return path

    def save_error(self, error: CellError) -> None:
        """Say in a cell's folder that it broke."""
        path = self.cell(error.id)
        path.mkdir(parents=True, exist_ok=True)
        write_whole(path / BROKEN, error.model_dump_json(by_alias=True, indent=2) + "\n")

    def is_full(self) -> bool:
        """Whether the disk has next to no room, so that whatever fails now may well fail for that."""
        return shutil.disk_usage(self.root).free < _NEXT_TO_NOTHING

    def require_room(self, cells: int, bytes_each: int) -> None:
        """Raise ConfigError where the disk clearly cannot hold so many more cells of about this size, in bytes."""
        free = shutil.disk_usage(self.root).free
        if cells * bytes_each > free:
            raise ConfigError(
                f"{cells} cells need about {cells * bytes_each / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free "
                f"at {self.root}: make room, give a sweep.dir on another disk, or sweep fewer cells"
            )


def save_result(folder: Path, result: CellResult) -> None:
    """Say in its run folder that a cell is finished: the last file that is written there."""
    write_whole(folder / RESULT, result.model_dump_json(by_alias=True, indent=2) + "\n")
