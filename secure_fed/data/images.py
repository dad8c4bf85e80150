"""Image files as grey values: one at once, or a whole set that is read only where somebody looks.

What is wrong with a file is said plainly and names it; such an error stays inside the site.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from secure_fed.errors import DataError

PART = 256  # rows that are read together: bounds memory, changes nothing
MOST_BYTES = 256 * 2**20  # of images that a process keeps after reading them: several sites of small films


def read_grey(path: Path, height: int, width: int) -> npt.NDArray[np.float32]:
    """Grey values float32 [1, height, width] in [0, 1]; 8- and 16-bit files, colour becomes its luminance.

    Another size is resampled, without keeping the aspect. Raises DataError for a file that is missing, cut
    off or no image.
    """
    try:
        with Image.open(path) as image:
            # A JPEG of a film has millions of pixels: its decoder can leave out what resampling would drop.
            image.draft("L", (width, height))
            if image.mode.startswith("I"):  # 16-bit grey; `convert("L")` would clip it at 255
                grey = np.asarray(image, dtype=np.float32) / np.float32(65535.0)
            else:
                grey = np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255.0)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist") from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} is cut off or no image ({error}): replace it") from error
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    clipped: npt.NDArray[np.float32] = np.clip(grey, 0.0, 1.0)[None]
    return clipped


class ReadImages:
    """Images that were read lately, by file, size and time of change, the least used dropped first; for all threads.

    Decoding a film takes longer than a step of training on it. It holds nothing that its process does not hold anyway.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, int, int, int], npt.NDArray[np.float32]] = OrderedDict()
        self._guard = Lock()

    def of(self, file: str, size: int) -> npt.NDArray[np.float32]:
        """Grey values [1, size, size], not to be written to. Raises DataError for a file that cannot be read."""
        try:
            found = os.stat(file)
        except OSError as error:
            raise DataError(f"image {file} cannot be read ({error.strerror})") from error
        key = (file, size, found.st_size, found.st_mtime_ns)
        with self._guard:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        image = read_grey(Path(file), size, size)
        with self._guard:
            if key not in self._kept:
                self._kept[key] = image
                self._bytes += image.nbytes
            while self._bytes > self._most:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return image


_READ = ReadImages()


class LazyImages:
    """float32 [n, 1, S, S] like an array, whose rows are read from files when it is turned into one.

    files: n paths; "" is a row of zeros (an absent image). Indexing with positions, a mask or a slice gives
    another LazyImages, with one number an array [1, S, S]. Reading raises DataError, naming the file.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, files: Sequence[str] | npt.NDArray[Any], size: int) -> None:
        self.files = np.array(files, dtype=object) if len(files) else np.empty(0, dtype=object)
        self.size = size

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 1, S, S)."""
        return (len(self.files), 1, self.size, self.size)

    @property
    def is_blank(self) -> npt.NDArray[np.bool_]:
        """bool [n]: rows without a file."""
        return np.array([file == "" for file in self.files], dtype=bool)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, int | np.integer):
            return self._read(self.files[index])
        return LazyImages(self.files[index], self.size)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        return (self._read(file) for file in self.files)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        if copy is False:
            raise ValueError("images in files cannot become an array without a copy")
        values = np.zeros(self.shape, dtype=np.float32)
        for row, file in zip(values, self.files, strict=True):
            if file:
                row[:] = self._read(file)
        return values if dtype is None else values.astype(dtype, copy=False)

    def blanked(self) -> LazyImages:
        """As many rows, all absent."""
        return LazyImages(np.full(len(self), "", dtype=object), self.size)

    def digest(self) -> bytes:
        """SHA-256 over size and each file's path, length and time of change: the same where the rows would be.

        Raises DataError for a file that is gone.
        """
        state = hashlib.sha256(f"files of {self.size} pixels a side, {len(self)}".encode())
        for file in self.files:
            if file:
                try:
                    found = os.stat(file)
                except OSError as error:
                    raise DataError(f"image {file} cannot be read ({error.strerror})") from error
                state.update(f"\0{file}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
            else:
                state.update(b"\0-")
        return state.digest()

    def _read(self, file: str) -> npt.NDArray[np.float32]:
        if file == "":
            return np.zeros((1, self.size, self.size), dtype=np.float32)
        return _READ.of(file, self.size)


def parts(raw: npt.NDArray[Any] | LazyImages, rows: int = PART) -> Iterator[npt.NDArray[Any]]:
    """`raw` as arrays of at most `rows` rows, in order, one in memory at a time; a single empty one for no rows."""
    for start in range(0, max(1, len(raw)), rows):
        yield np.asarray(raw[start : start + rows])
