"""The geometry of a synthetic chest film: where lungs and pleura lie, and soft shapes to draw with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from secure_fed.data.cxr_anatomy import Anatomy, Array

_LATERAL, _APEX_HEIGHT, _WIDEST = 0.80, 1.06, 0.25  # the lungs' outer border, an ellipse about (0, _WIDEST)


@dataclass(frozen=True)
class Scene:
    """The geometry of m films of size S. u, au = |u|: [m, 1, S]; v: [m, S, 1]; the rest as noted.

    rim: [m, S, S], 1 - (elliptic distance from the middle of the chest): 0 on the pleura, positive inside.
    dome: [m, 1, S], the height v of the diaphragm. lung: [m, S, S], 1 in the lungs, 0 outside, soft edges.
    """

    u: Array
    v: Array
    au: Array
    rim: Array
    dome: Array
    lung: Array

    def rows(self, index: npt.NDArray[np.int64]) -> Scene:
        """The geometry of some of the films."""
        return Scene(*(part[index] for part in (self.u, self.v, self.au, self.rim, self.dome, self.lung)))


def ramp(distance: Array, width: float) -> Array:
    """A soft step: 0 below -width / 2, 1 above width / 2."""
    return np.clip(distance / np.float32(width) + np.float32(0.5), 0.0, 1.0)


def bell(distance: Array, width: Array | float) -> Array:
    """exp(-(distance / width)^2)."""
    scaled = distance / np.asarray(width, dtype=np.float32)
    return np.exp(-scaled * scaled)


def column(values: Array) -> Array:
    """One number a film, [m], as [m, 1, 1]."""
    return values[:, None, None]


def scene_of(body: Anatomy, size: int) -> Scene:
    """The geometry of m films of size x size pixels."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2.0 / size) - 1.0
    u = (axis[None, None, :] - column(body.shift_u)) / column(body.width)
    v = (axis[None, :, None] - column(body.shift_v)) / column(body.height)
    au = np.abs(u)
    rim = 1.0 - np.sqrt((au / _LATERAL) ** 2 + ((v - _WIDEST) / _APEX_HEIGHT) ** 2)
    # The right dome (the patient's; u < 0) stands higher, the liver being under it.
    dome = np.where(u < 0, np.float32(0.44), np.float32(0.50)) - column(body.diaphragm) + 0.95 * (au - 0.36) ** 2
    lung = ramp(rim, 0.07) * ramp(au - 0.13 - 0.05 * bell(v + 0.75, 0.2), 0.06) * ramp(dome - v, 0.06)
    return Scene(u, v, au, rim, dome, lung)
