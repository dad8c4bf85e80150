"""A federation whose sites come from different sets: who holds what is said by the configuration, not by chance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from secure_fed.data.config import CompositeConfig, PartConfig
from secure_fed.data.partition import SitesOf
from secure_fed.data.records import Records, Schema, concatenated
from secure_fed.errors import ConfigError


@dataclass(frozen=True)
class Composed:
    """The records of all parts, one after the other, and those of the hold-out."""

    records: Records
    holdout: Records
    notes: Mapping[str, int]


def layout_of(config: CompositeConfig, schema: Schema) -> tuple[SitesOf, ...]:
    """Who holds what, in the order of site numbers, without reading data. Raises ConfigError for a wrong modality."""
    layout = []
    for name, part in config.parts.items():
        owned = schema.names if part.modalities is None else part.modalities
        for modality in owned:
            schema.modality(modality)
        layout.append(SitesOf(name, part.sites, frozenset(owned)))
    return tuple(layout)


def schema_of_composite(config: CompositeConfig, schema_of: Callable[[PartConfig], Schema]) -> Schema:
    """The one schema of all parts and the hold-out. Raises ConfigError where they differ."""
    schemas = {f"data.parts.{name}": schema_of(part.source) for name, part in config.parts.items()}
    common = schema_of(config.holdout.source)
    for key, schema in schemas.items():
        if schema != common:
            raise ConfigError(
                f"{key} has {_outline(schema)}, but data.holdout has {_outline(common)}: one model needs the same of "
                "both; give them the same image_size and labels"
            )
    return common


def compose(
    config: CompositeConfig,
    seed: int,
    load: Callable[[PartConfig, int, str], tuple[Records, Records | None, Mapping[str, int]]],
) -> Composed:
    """Read every part and the hold-out; `load` gives a set's training side, its own hold-out if any, and notes.

    It is told the set, its seed, and the key that the set stands under, which its messages name.
    Stand-ins are drawn from seeds of their own, so that no two parts have a patient in common; patients of different
    parts never share an id. What `load` raises.
    """
    notes: dict[str, int] = {}
    parts = []
    for name, part in config.parts.items():
        records, _, told = load(part.source, _seed_of(seed, name), f"data.parts.{name}.data")
        parts.append(_named(records, name))
        notes |= {f"{name}: {what}": count for what, count in told.items()}
    training, own, told = load(config.holdout.source, _seed_of(seed, "the hold-out"), "data.holdout.data")
    notes |= {f"holdout: {what}": count for what, count in told.items()}
    return Composed(concatenated(parts), _named(training if own is None else own, "holdout"), notes)


def _named(records: Records, part: str) -> Records:
    """The records with their part's name as group, and before each patient's id."""
    ids = np.array([f"{part}/{unit}" for unit in records.unit_ids], dtype=np.str_)
    return replace(records, unit_ids=ids, groups=np.full(len(records), part))


def _seed_of(seed: int, part: str) -> int:
    digest = hashlib.sha256(f"secure_fed part of a composite/{seed}/{part}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _outline(schema: Schema) -> str:
    modalities = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in schema.modalities)
    return f"{modalities} and {len(schema.labels)} labels"
