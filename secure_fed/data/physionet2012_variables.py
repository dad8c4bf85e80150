"""The variables of PhysioNet 2012, what is plausible, and the fixed public ranges that scale them.

All constants are general clinical knowledge of adult intensive care, rounded (plausible limits compare with
the physiological limits of MIMIC-Extract, Wang et al., CHIL 2020, arXiv 1907.08322). None was fitted to the
data: a range taken from a site's records would be a leak outside differential privacy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_OFFSET = 0.05  # keeps a logarithm finite at zero (urine, troponin)


@dataclass(frozen=True)
class Variable:
    """One measured variable. Values outside [least, most] are implausible; [lo, hi] is scaled to [-1, 1]."""

    name: str
    unit: str
    least: float
    most: float
    lo: float
    hi: float
    log: bool = False
    flag: bool = False  # there or not: has no summaries

    def scale(self, value: float) -> float:
        """`value` by the public range, linear or logarithmic, clipped to [-1, 1]."""
        lo, hi = self.lo, self.hi
        if self.log:
            lo, hi, value = math.log(lo + _OFFSET), math.log(hi + _OFFSET), math.log(value + _OFFSET)
        return min(1.0, max(-1.0, 2.0 * (value - lo) / (hi - lo) - 1.0))


VITALS = (
    Variable("GCS", "points", 3, 15, 3, 15),
    Variable("HR", "1/min", 10, 300, 40, 140),
    Variable("SysABP", "mmHg", 20, 300, 70, 180),
    Variable("DiasABP", "mmHg", 10, 200, 30, 100),
    Variable("MAP", "mmHg", 15, 250, 40, 120),
    Variable("NISysABP", "mmHg", 20, 300, 70, 180),
    Variable("NIDiasABP", "mmHg", 10, 200, 30, 100),
    Variable("NIMAP", "mmHg", 15, 250, 40, 120),
    Variable("RespRate", "1/min", 1, 80, 5, 40),
    Variable("Temp", "C", 25, 45, 34, 40),
    Variable("Urine", "mL", 0, 5000, 5, 600, log=True),
    Variable("FiO2", "fraction", 0.2, 1.0, 0.21, 1.0),
    Variable("MechVent", "flag", 0, 1, 0, 1, flag=True),
)
LABS = (
    Variable("Albumin", "g/dL", 0.5, 7, 1.5, 5),
    Variable("ALP", "IU/L", 1, 5000, 20, 600, log=True),
    Variable("ALT", "IU/L", 1, 20000, 5, 2000, log=True),
    Variable("AST", "IU/L", 1, 30000, 5, 2000, log=True),
    Variable("Bilirubin", "mg/dL", 0.05, 80, 0.2, 20, log=True),
    Variable("BUN", "mg/dL", 0, 300, 5, 120, log=True),
    Variable("Cholesterol", "mg/dL", 10, 800, 60, 300),
    Variable("Creatinine", "mg/dL", 0.05, 40, 0.3, 8, log=True),
    Variable("Glucose", "mg/dL", 5, 2000, 50, 400, log=True),
    Variable("HCO3", "mmol/L", 1, 60, 10, 40),
    Variable("HCT", "%", 5, 75, 18, 48),
    Variable("K", "mmol/L", 1, 15, 2.5, 6.5),
    Variable("Lactate", "mmol/L", 0.1, 40, 0.5, 12, log=True),
    Variable("Mg", "mmol/L", 0.1, 15, 1, 3.5),
    Variable("Na", "mmol/L", 80, 200, 120, 155),
    Variable("PaCO2", "mmHg", 5, 200, 20, 70),
    Variable("PaO2", "mmHg", 10, 700, 40, 400, log=True),
    Variable("pH", "", 6.5, 8, 7.1, 7.6),
    Variable("Platelets", "10^3/uL", 1, 3000, 20, 600, log=True),
    Variable("SaO2", "%", 10, 100, 80, 100),
    Variable("TroponinI", "ug/L", 0, 500, 0.1, 50, log=True),
    Variable("TroponinT", "ug/L", 0, 100, 0.01, 10, log=True),
    Variable("WBC", "10^3/uL", 0, 500, 2, 40, log=True),
)
# Known once a stay; -1 stands for unknown. Weight is measured again later; the first plausible one counts.
DESCRIPTORS = (
    Variable("Age", "years", 14, 120, 20, 90),
    Variable("Gender", "1 = male", 0, 1, 0, 1),
    Variable("Height", "cm", 120, 230, 140, 200),
    Variable("Weight", "kg", 25, 350, 40, 140),
)
ICU_TYPES = {1: "coronary", 2: "cardiac_surgery", 3: "medical", 4: "surgical"}
