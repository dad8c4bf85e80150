"""Draws chest films: the normal anatomy as layers of density, then the findings upon it, many films at once.

A density is what the beam has passed, 0 (air) to 1 (bone, metal); exposure turns it into grey values.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from secure_fed.data.cxr_anatomy import FINDINGS, Anatomy, Array, Placement
from secure_fed.data.film_findings import add_findings
from secure_fed.data.film_geometry import Scene, bell, column, ramp, scene_of

_CHUNK = 64  # films drawn together: small enough that the working arrays stay in the cache
_VISIBLE_FROM = 0.8  # evidence below this leaves no trace on the film, as on a real one


def contrast_of(evidence: npt.NDArray[np.float64]) -> Array:
    """Contrast in [0, 1.4] of a finding on the film: nothing below a threshold, then linear in the evidence.

    A fifth of the films without a finding show something like it: skin folds, fat, overlapping vessels.
    """
    return np.clip((evidence - _VISIBLE_FROM) / 2.0, 0.0, 1.4).astype(np.float32)


def draw_films(
    rng: np.random.Generator,
    evidence: npt.NDArray[np.float64],
    anatomy: Anatomy,
    placement: Placement,
    size: int,
) -> Array:
    """Films float32 [n, 1, size, size] in [0, 1], in the 256 grey values of an 8-bit file.

    evidence: [n, 13], see `contrast_of`.
    """
    contrast = contrast_of(evidence)
    images = np.empty((len(evidence), 1, size, size), dtype=np.float32)
    for start in range(0, len(evidence), _CHUNK):
        part = slice(start, start + _CHUNK)
        body, c, place = anatomy.rows(part), contrast[part], placement.rows(part)
        scene = scene_of(body, size)
        middle = _mediastinum(scene, body, c)
        density = _anatomy(scene, body, middle)
        # Behind the heart a shadow adds little: what is seen of the lungs is what lies beside it.
        add_findings(density, replace(scene, lung=scene.lung * (1.0 - 0.75 * middle)), c, place)
        images[part, 0] = _expose(rng, density, body)
    return images


def _anatomy(scene: Scene, body: Anatomy, middle: Array) -> Array:
    """Density [m, S, S] of a chest with the mediastinum `middle` [m, S, S], an opacity in [0, 1]."""
    u, v, au, lung = scene.u, scene.v, scene.au, scene.lung
    shoulder = 0.30 + 0.68 * np.clip((v + 1.02) / 0.5, 0.0, 1.0) ** 0.7
    trunk = ramp(shoulder - au, 0.08)
    density = trunk * (0.50 + 0.10 * ramp(au - 0.72, 0.2)) - 0.34 * lung
    below = ramp(v - scene.dome, 0.07) * ramp(0.86 - au, 0.1)
    density += below * (0.70 - density)
    density -= 0.22 * bell(u - 0.40, 0.15) * bell(v - scene.dome - 0.17, 0.08)  # gas in the stomach
    density += _bones(scene, body)
    density += lung * 0.20 * bell(au - 0.24, 0.10) * bell(v - 0.02, 0.16)  # vessels of the hila
    density += column(body.breast) * bell(au - 0.45, 0.25) * ramp(v - 0.05, 0.3) * ramp(0.62 - v, 0.15)
    density += middle * (0.72 - density)
    density += 0.09 * bell(u - column(body.rotation) * 0.4, 0.08) * (1.0 + 0.35 * np.cos(26.0 * v))  # spine
    density -= 0.20 * bell(u - column(body.rotation), 0.05) * ramp(-0.30 - v, 0.15)  # trachea
    return density


def _bones(scene: Scene, body: Anatomy) -> Array:
    """Ribs, falling outwards behind and rising in front, and the clavicles."""
    v, au = scene.v, scene.au
    cage = ramp(scene.rim + 0.06, 0.06) * ramp(au - 0.10, 0.08)
    behind = np.cos((v - 0.42 * au**1.5 + 0.25 * au) * np.float32(30.0))
    front = np.cos((v + 0.55 * au) * np.float32(22.0)) * ramp(au - 0.35, 0.3)
    ribs = cage * (0.045 * np.maximum(behind, -0.2) + 0.020 * front)
    clavicle = bell(v + 0.56 + 0.24 * au, 0.035) * ramp(au - 0.08, 0.06) * ramp(0.80 - au, 0.1)
    return column(body.ribs) * (ribs + 0.13 * clavicle)


def _mediastinum(scene: Scene, body: Anatomy, contrast: Array) -> Array:
    """Opacity in [0, 1] of the heart's shadow, the great vessels and the aortic knob."""
    u = scene.u - column(body.rotation)
    v = scene.v
    wide = column(contrast[:, FINDINGS.index("Enlarged Cardiomediastinum")])
    big = column(contrast[:, FINDINGS.index("Cardiomegaly")])
    half = (0.35 * column(body.heart)) * (1.0 + 0.32 * big)
    axis = 0.09 + 0.10 * big + 0.30 * (v - 0.24)  # the heart leans to the left as it goes down
    heart = 1.0 - (np.abs((u - axis) / half) ** 2.3 + np.abs((v - 0.26) / (0.36 + 0.04 * big)) ** 2.0)
    band = 0.115 * (1.0 + 0.75 * wide * bell(v + 0.30, 0.35)) + 0.03 * np.clip(v, -0.2, 1.0)
    vessels = ramp(band - np.abs(u - 0.01), 0.06)
    knob = ramp(1.0 - np.sqrt(((u - 0.12) / 0.09) ** 2 + ((v + 0.24) / 0.10) ** 2), 0.5)
    return np.maximum(np.maximum(ramp(heart, 0.30), vessels), 0.9 * knob)


def _expose(rng: np.random.Generator, density: Array, body: Anatomy) -> Array:
    """Grey values in [0, 1]: quantum mottle on fine and coarse scale, exposure, and 8 bits."""
    m, size, _ = density.shape
    grain = rng.standard_normal((m, size, size), dtype=np.float32)
    coarse = rng.standard_normal((m, size // 8, size // 8), dtype=np.float32)
    mottle = grain + np.float32(0.6) * _enlarge(coarse, size)
    grey = (density - 0.45) * column(body.gain) + 0.45 + column(body.offset) + column(body.noise) * mottle
    return np.rint(np.clip(grey, 0.0, 1.0) * np.float32(255.0)) / np.float32(255.0)


def _enlarge(coarse: Array, size: int) -> Array:
    """Bilinear interpolation of [m, k, k] to [m, size, size]."""
    at = np.linspace(0.0, coarse.shape[1] - 1.0, size)
    low = np.minimum(at.astype(np.int64), coarse.shape[1] - 2)
    weight = (at - low).astype(np.float32)
    rows = coarse[:, low] + weight[:, None] * (coarse[:, low + 1] - coarse[:, low])
    enlarged: Array = rows[:, :, low] + weight * (rows[:, :, low + 1] - rows[:, :, low])
    return enlarged
