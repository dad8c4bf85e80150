"""Reads one image file of one's own data as grey values, and says plainly what is wrong where it cannot."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from secure_fed.errors import DataError


def read_grey(path: Path, height: int, width: int) -> npt.NDArray[np.float32]:
    """Grey values float32 [1, height, width] in [0, 1]; 8- and 16-bit files, colour becomes its luminance.

    Another size is resampled, without keeping the aspect. Raises DataError for a file that is missing, cut
    off or no image.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I"):  # 16-bit grey; `convert("L")` would clip it at 255
                grey = np.asarray(image, dtype=np.float32) / np.float32(65535.0)
            else:
                grey = np.asarray(image.convert("L"), dtype=np.float32) / np.float32(255.0)
    except FileNotFoundError as error:
        raise DataError(f"image {path} does not exist: paths are relative to the CSV") from error
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} is cut off or no image ({error}): replace it") from error
    if grey.shape != (height, width):
        grey = np.asarray(Image.fromarray(grey).resize((width, height), Image.Resampling.BILINEAR))
    clipped: npt.NDArray[np.float32] = np.clip(grey, 0.0, 1.0)[None]
    return clipped
