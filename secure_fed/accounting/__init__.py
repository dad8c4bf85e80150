"""What a release costs: mechanisms as plain events, composition and calibration over dp-accounting.

No torch and no flwr in here: the auditor's `verify` stands on this room alone.
"""

from secure_fed.accounting.calibrate import MechanismShape, calibrate
from secure_fed.accounting.compose import (
    Accountant,
    Relation,
    epsilon,
    epsilon_by_round,
    epsilon_curve,
)
from secure_fed.accounting.filter import filter_epsilon, filter_order
from secure_fed.accounting.groups import patient_epsilon
from secure_fed.accounting.mechanisms import Kind, Mechanism, event, joint_noise_multiplier, merge
from secure_fed.accounting.selection import (
    Composed,
    composed_epsilon,
    covers,
    draw_repetitions,
    repeat_select_epsilon,
)

__all__ = [
    "Accountant",
    "Composed",
    "Kind",
    "Mechanism",
    "MechanismShape",
    "Relation",
    "calibrate",
    "composed_epsilon",
    "covers",
    "draw_repetitions",
    "epsilon",
    "epsilon_by_round",
    "epsilon_curve",
    "event",
    "filter_epsilon",
    "filter_order",
    "joint_noise_multiplier",
    "merge",
    "patient_epsilon",
    "repeat_select_epsilon",
]
