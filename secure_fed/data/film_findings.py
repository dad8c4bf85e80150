"""Draws each finding as what it is on a chest film, at the contrast and in the place that it was given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secure_fed.data.cxr_anatomy import DEVICES, FINDINGS, Array, Placement
from secure_fed.data.film_geometry import Scene, bell, ramp

_ZONE_V = np.array([-0.38, -0.04, 0.26], dtype=np.float32)


class Spot:
    """Where and how plainly one finding is drawn on m films; all but `devices` are [m, 1, 1]."""

    def __init__(self, finding: int, contrast: Array, place: Placement) -> None:
        self.contrast = contrast[:, finding, None, None]
        self.side = place.side[:, finding, None, None].astype(np.float32)
        self.zone = place.zone[:, finding, None, None]
        self.zone_v = _ZONE_V[place.zone[:, finding]][:, None, None]
        self.j = [place.jitter[:, finding, k, None, None] for k in range(3)]
        self.devices = place.devices

    def on_side(self, scene: Scene) -> Array:
        """1 on the finding's side of the chest, 0 on the other; 1 on both where it has both."""
        return np.where(self.side == 0, np.float32(1.0), (np.sign(scene.u) == self.side).astype(np.float32))


def add_findings(density: Array, scene: Scene, contrast: Array, place: Placement) -> None:
    """Adds to density [m, S, S], in place, what contrast [m, 13] says, but for heart and mediastinum."""
    for name, draw in _DRAW.items():
        finding = FINDINGS.index(name)
        rows = np.flatnonzero(contrast[:, finding] > 0)
        if rows.size:
            spot = Spot(finding, contrast[rows], place.rows(rows))
            density[rows] += spot.contrast * draw(scene.rows(rows), spot)


def _opacity(scene: Scene, spot: Spot) -> Array:
    """An ill-defined haze in one zone."""
    at = bell(scene.u - spot.side * (0.42 + 0.10 * spot.j[0]), 0.22) * bell(
        scene.v - spot.zone_v - 0.06 * spot.j[1], 0.20 + 0.04 * spot.j[2]
    )
    return 0.24 * at * scene.lung


def _lesion(scene: Scene, spot: Spot) -> Array:
    """A round nodule with a sharp border."""
    du = scene.u - spot.side * (0.44 + 0.14 * spot.j[0])
    dv = scene.v - spot.zone_v - 0.10 * spot.j[1]
    radius = 0.105 + 0.035 * spot.j[2]
    return 0.40 * ramp(radius - np.sqrt(du * du + dv * dv), 0.05) * ramp(scene.lung - 0.3, 0.5)


def _edema(scene: Scene, spot: Spot) -> Array:
    """Haze about both hila like a bat's wings, with septal lines at the bases' outer border."""
    wings = bell(scene.au - 0.32, 0.20) * bell(scene.v - 0.04 - 0.04 * spot.j[0], 0.32)
    septal = bell(scene.rim - 0.08, 0.09) * ramp(scene.v - 0.1, 0.15) * np.cos(70.0 * scene.v)
    return (0.20 * wings + 0.07 * septal) * scene.lung


def _consolidation(scene: Scene, spot: Spot) -> Array:
    """A lobe filled up to its fissure, with darker air bronchograms."""
    upper = ramp(-0.12 - 0.25 * (scene.au - 0.4) - scene.v, 0.06) * ramp(scene.v + 0.62, 0.2)
    lower = ramp(scene.v - 0.06 + 0.25 * (scene.au - 0.4), 0.06)
    lobe = np.where(spot.zone == 0, upper, lower) * spot.on_side(scene)
    airways = 1.0 - 0.30 * bell(np.sin(9.0 * (scene.v - scene.au) + 2.0 * spot.j[0]), 0.30) * ramp(0.62 - scene.au, 0.3)
    return 0.26 * lobe * airways * scene.lung


def _pneumonia(scene: Scene, spot: Spot) -> Array:
    """Several small patches that run together in one zone."""
    patches = np.zeros(scene.lung.shape, dtype=np.float32)
    for du, dv, size in ((-0.12, -0.06, 0.09), (0.06, 0.07, 0.10), (0.14, -0.09, 0.08)):
        patches += bell(scene.u - spot.side * (0.42 + 0.06 * spot.j[0]) - du, size) * bell(
            scene.v - spot.zone_v - 0.05 * spot.j[1] - dv, size
        )
    return 0.26 * patches * scene.lung


def _atelectasis(scene: Scene, spot: Spot) -> Array:
    """Plates across the base, and a base that has lost volume."""
    band = np.zeros(scene.lung.shape, dtype=np.float32)
    for above, slope in ((0.10, 0.20), (0.20, 0.05)):
        line = scene.dome - above - 0.03 * spot.j[0] + slope * (scene.au - 0.4)
        band += bell(scene.v - line, 0.032) * bell(scene.au - 0.42, 0.24)
    lost = ramp(scene.v - scene.dome + 0.10, 0.12)
    return (0.24 * band + 0.12 * lost) * spot.on_side(scene) * scene.lung


def _pneumothorax(scene: Scene, spot: Spot) -> Array:
    """Air outside a thin white pleural line, above and to the side; no vessels in it."""
    depth = 0.13 + 0.07 * np.minimum(spot.contrast, 1.0)
    height = ramp(0.10 + 0.1 * spot.j[0] - scene.v, 0.3) * spot.on_side(scene)
    air = ramp(depth - scene.rim, 0.04) * scene.lung
    line = bell(scene.rim - depth, 0.028) * ramp(scene.au - 0.14, 0.06)
    return height * (0.30 * line - 0.13 * air)


def _effusion(scene: Scene, spot: Spot) -> Array:
    """Fluid on the diaphragm whose surface rises towards the chest wall: the meniscus."""
    depth = (0.08 + 0.16 * np.minimum(spot.contrast, 1.2)) * (0.5 + 1.9 * (scene.au / 0.75) ** 3)
    fluid = ramp(scene.v - scene.dome + depth, 0.07) * scene.lung
    return 0.36 * fluid * spot.on_side(scene)


def _pleural_other(scene: Scene, spot: Spot) -> Array:
    """A thickened pleura along the wall, with calcified plaques, or a cap on the apex."""
    along = bell(scene.rim - 0.04, 0.05) * spot.on_side(scene)
    wall = along * ramp(0.30 - np.abs(scene.v - 0.08), 0.15) * (1.0 + 0.4 * np.cos(18.0 * scene.v + 3.0 * spot.j[0]))
    cap = bell(scene.rim - 0.06, 0.09) * ramp(-0.45 - scene.v, 0.12) * spot.on_side(scene)
    return 0.28 * np.where(spot.zone == 0, cap, wall)


def _fracture(scene: Scene, spot: Spot) -> Array:
    """A step in a rib near the chest wall: two bright ends, displaced, and a dark gap."""
    u = scene.u - spot.side * (0.66 + 0.05 * spot.j[0])
    v = scene.v - spot.zone_v - 0.10 * spot.j[1]
    ends: Array = bell(u - 0.06, 0.045) * bell(v - 0.045, 0.035) + bell(u + 0.06, 0.045) * bell(v + 0.045, 0.035)
    return 0.36 * ends - 0.22 * bell(u, 0.035) * bell(v, 0.06)


def _devices(scene: Scene, spot: Spot) -> Array:
    """Metal and plastic: each device that this study has."""
    drawn = np.zeros(scene.lung.shape, dtype=np.float32)
    for k, name in enumerate(DEVICES):
        rows = np.flatnonzero(spot.devices[:, k])
        if rows.size:
            j = [part[rows] for part in spot.j]
            drawn[rows] += _DEVICE[name](scene.rows(rows), spot.side[rows], j)
    # A device is dense or not there: how plain it is varies less than for soft tissue.
    return drawn * (0.35 + 0.4 * np.minimum(spot.contrast, 1.0)) / np.maximum(spot.contrast, 0.25)


def _pacemaker(scene: Scene, side: Array, j: list[Array]) -> Array:
    at = np.where(side == 0, 1.0, -side)  # most often on the left; the column's `side` favours the right
    u, v = scene.u - at * (0.56 + 0.05 * j[0]), scene.v + 0.46 + 0.05 * j[1]
    box = ramp(0.12 - np.abs(u), 0.05) * ramp(0.09 - np.abs(v), 0.05)
    lead_u = 0.16 + (at * 0.50 - 0.16) * np.clip(0.5 - (scene.v + 0.42) / 0.75, 0.0, 1.0) ** 2
    lead = bell(scene.u - lead_u, 0.028) * ramp(scene.v + 0.44, 0.06) * ramp(0.42 - scene.v, 0.06)
    return 0.65 * box + 0.40 * lead


def _endotracheal(scene: Scene, _: Array, j: list[Array]) -> Array:
    return 0.40 * bell(scene.u - 0.02 * j[0], 0.030) * ramp(-0.28 + 0.06 * j[1] - scene.v, 0.05)


def _venous(scene: Scene, _: Array, j: list[Array]) -> Array:
    bend = np.clip((-0.30 - scene.v) / 0.5, 0.0, 1.0)
    course = -0.13 - (0.22 + 0.05 * j[0]) * bend
    return 0.36 * bell(scene.u - course, 0.028) * ramp(0.06 + 0.06 * j[1] - scene.v, 0.06)


def _wires(scene: Scene, _: Array, j: list[Array]) -> Array:
    rings: Array = np.maximum(np.cos(28.0 * scene.v + 2.0 * j[0]), 0.0) ** 4
    return 0.38 * bell(scene.u, 0.055) * rings * ramp(scene.v + 0.30, 0.1) * ramp(0.45 - scene.v, 0.1)


def _chest_tube(scene: Scene, side: Array, j: list[Array]) -> Array:
    at = np.where(side == 0, 1.0, side)
    course = at * (0.36 + 0.55 * np.clip(scene.v + 0.35, 0.0, 2.0) ** 1.3 + 0.03 * j[0])
    return 0.38 * bell(scene.u - course, 0.034) * ramp(scene.v + 0.35 + 0.1 * j[1], 0.06) * ramp(0.40 - scene.v, 0.06)


def _nasogastric(scene: Scene, _: Array, j: list[Array]) -> Array:
    course = 0.03 + 0.02 * j[0] + 0.30 * np.clip(scene.v - 0.35, 0.0, 1.0)
    return 0.34 * bell(scene.u - course, 0.026) * ramp(0.78 - scene.v, 0.06)


_DRAW: Mapping[str, Callable[[Scene, Spot], Array]] = {
    "Lung Opacity": _opacity,
    "Lung Lesion": _lesion,
    "Edema": _edema,
    "Consolidation": _consolidation,
    "Pneumonia": _pneumonia,
    "Atelectasis": _atelectasis,
    "Pneumothorax": _pneumothorax,
    "Pleural Effusion": _effusion,
    "Pleural Other": _pleural_other,
    "Fracture": _fracture,
    "Support Devices": _devices,
}
_DEVICE: Mapping[str, Callable[[Scene, Array, list[Array]], Array]] = {
    "pacemaker": _pacemaker,
    "endotracheal": _endotracheal,
    "venous": _venous,
    "wires": _wires,
    "chest_tube": _chest_tube,
    "nasogastric": _nasogastric,
}
