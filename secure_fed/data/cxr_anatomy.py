"""What varies between synthetic chest films besides disease: the body, exposure, and where a finding sits.

Coordinates: u runs over the image from -1 (left edge, the patient's right) to 1, v from -1 (top) to 1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

# The CheXpert labels after "No Finding", in CheXpert's order; columns of every [n, 13] array here.
FINDINGS = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
DEVICES = ("pacemaker", "endotracheal", "venous", "wires", "chest_tube", "nasogastric")
_DEVICE_SHARE = (0.20, 0.22, 0.30, 0.18, 0.12, 0.22)

# Probability of (patient's right, left, both sides), where a finding has a side.
_SIDES = {"Edema": (0.0, 0.0, 1.0), "Pleural Effusion": (0.36, 0.34, 0.30), "Atelectasis": (0.32, 0.38, 0.30)}
_ONE_SIDE = (0.55, 0.45, 0.0)
# Probability of (upper, middle, lower) zone.
_ZONES = {"Lung Opacity": (0.2, 0.3, 0.5), "Consolidation": (0.25, 0.0, 0.75), "Pneumonia": (0.15, 0.25, 0.6)}
_ANY_ZONE = (0.35, 0.35, 0.3)

Array = npt.NDArray[Any]  # float32 throughout; numpy's stubs lose the dtype in mixed arithmetic


class _Rows:
    """Arrays that share their first axis, cut together."""

    def rows(self, index: Any) -> Any:
        """The same object for a slice, a mask or positions of the first axis."""
        return type(self)(**{field.name: getattr(self, field.name)[index] for field in fields(self)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Anatomy(_Rows):
    """float32 [n] each: body and exposure of a study. Widths and shifts in image coordinates."""

    width: Array  # of the thorax, relative
    height: Array
    shift_u: Array
    shift_v: Array
    rotation: Array  # shift of the mediastinum against the lungs
    heart: Array  # relative heart width without disease
    diaphragm: Array  # how far up the domes stand: a shallow breath
    ribs: Array  # contrast of the bones
    breast: Array  # density of the breast shadows
    gain: Array
    offset: Array
    noise: Array

    @classmethod
    def draw(cls, rng: np.random.Generator, patients: int, patient: npt.NDArray[np.int64]) -> Anatomy:
        """The body stays with the patient, position and exposure belong to the study. `patient` is [n]."""

        def body(sd: float) -> npt.NDArray[np.float64]:
            return sd * rng.standard_normal(patients)[patient]

        def study(sd: float) -> npt.NDArray[np.float64]:
            return sd * rng.standard_normal(len(patient))

        drawn = {
            "width": 1.0 + body(0.045) + study(0.02),
            "height": 1.0 + body(0.035) + study(0.02),
            "shift_u": study(0.03),
            "shift_v": study(0.035),
            "rotation": study(0.025),
            "heart": 1.0 + body(0.05) + study(0.03),
            "diaphragm": body(0.025) + study(0.045),
            "ribs": 1.0 + body(0.25),
            "breast": np.maximum(0.0, body(0.06)),
            "gain": 1.0 + body(0.06) + study(0.10),
            "offset": study(0.035),
            "noise": 0.022 + np.abs(study(0.012)),
        }
        return cls(**{name: value.astype(np.float32) for name, value in drawn.items()})


@dataclass(frozen=True)
class Placement(_Rows):
    """Where each finding sits, should it be there: what film and report must agree on.

    side: int8 [n, 13], -1 the patient's right, 1 left, 0 both. zone: int8 [n, 13], 0 upper to 2 lower.
    jitter: float32 [n, 13, 3] in [-1, 1]. devices: bool [n, 6], at least one.
    """

    side: npt.NDArray[np.int8]
    zone: npt.NDArray[np.int8]
    jitter: Array
    devices: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int) -> Placement:
        """Independent of whether the finding is there."""
        side = np.empty((n, len(FINDINGS)), dtype=np.int8)
        zone = np.empty((n, len(FINDINGS)), dtype=np.int8)
        for j, name in enumerate(FINDINGS):
            side[:, j] = rng.choice(np.array([-1, 1, 0]), size=n, p=_SIDES.get(name, _ONE_SIDE))
            zone[:, j] = rng.choice(3, size=n, p=_ZONES.get(name, _ANY_ZONE))
        devices = rng.random((n, len(DEVICES))) < np.array(_DEVICE_SHARE)
        share = np.array(_DEVICE_SHARE) / sum(_DEVICE_SHARE)
        devices[np.arange(n), rng.choice(len(DEVICES), size=n, p=share)] = True
        jitter = rng.uniform(-1.0, 1.0, size=(n, len(FINDINGS), 3)).astype(np.float32)
        return cls(side=side, zone=zone, jitter=jitter, devices=devices)
