"""What a record is, and where records come from: readers of real data sets, a synthetic one, partitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secure_fed.data.chexpert import survey_chexpert
from secure_fed.data.composite import compose, schema_of_composite
from secure_fed.data.composite import layout_of as _layout_of_composite
from secure_fed.data.config import (
    ChexpertConfig,
    CompositeConfig,
    DataConfig,
    ManifestConfig,
    MimicCxrConfig,
    OpenIConfig,
    PartConfig,
    PhysioNet2012Config,
    RadiologyConfig,
    SyntheticCxrConfig,
)
from secure_fed.data.manifest import manifest_for, read_manifest, schema_of_manifest, write_manifest
from secure_fed.data.mimic_cxr import survey_mimic_cxr
from secure_fed.data.open_i import survey_open_i
from secure_fed.data.partition import SitesOf
from secure_fed.data.physionet2012 import SCHEMA as _PHYSIONET2012_SCHEMA
from secure_fed.data.physionet2012 import read_physionet2012
from secure_fed.data.radiology import Survey, radiology_schema, records_of
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.data.synthetic_cxr import generate_synthetic_cxr, schema_of_synthetic_cxr
from secure_fed.data.tables import Faults
from secure_fed.errors import DataError

__all__ = [
    "CompositeConfig",
    "DataConfig",
    "Loaded",
    "ManifestConfig",
    "ModalitySpec",
    "PhysioNet2012Config",
    "RadiologyConfig",
    "Records",
    "Schema",
    "SitesOf",
    "SyntheticCxrConfig",
    "layout_of",
    "load",
    "manifest_for",
    "read_manifest",
    "schema_of",
    "survey",
    "write_manifest",
]


@dataclass(frozen=True)
class Loaded:
    """Records, and what a person should know of the reading: what was counted and skipped, in order.

    holdout: the set's own test side, which is none of `records`; None where the set is split by patient.
    layout: of a composite, which sites hold the records of which group; () where sites are split off at will.
    """

    records: Records
    notes: Mapping[str, int]
    holdout: Records | None = None
    layout: tuple[SitesOf, ...] = ()


def load(config: DataConfig, seed: int) -> Loaded:
    """Reads or generates a data set. `seed` matters to the synthetic one only.

    Raises DataError for a file that is missing, empty, malformed or of another format.
    """
    if isinstance(config, CompositeConfig):
        layout = layout_of(config)  # before anything is read: parts that do not fit are found at once
        composed = compose(config, seed, _sides)
        return Loaded(composed.records, composed.notes, composed.holdout, layout)
    records, holdout, notes = _sides(config, seed)
    return Loaded(records, notes, holdout)


def schema_of(config: DataConfig) -> Schema:
    """The schema that `load` will give, without reading any data."""
    if isinstance(config, CompositeConfig):
        return schema_of_composite(config, schema_of)
    if isinstance(config, SyntheticCxrConfig):
        return schema_of_synthetic_cxr(config)
    if isinstance(config, RadiologyConfig):
        return radiology_schema(config)
    if isinstance(config, PhysioNet2012Config):
        return _PHYSIONET2012_SCHEMA
    return schema_of_manifest(config)


def layout_of(config: DataConfig) -> tuple[SitesOf, ...]:
    """The layout that `load` will give, without reading any data; raises ConfigError where parts do not fit."""
    return _layout_of_composite(config, schema_of(config)) if isinstance(config, CompositeConfig) else ()


def survey(config: MimicCxrConfig | OpenIConfig | ChexpertConfig, faults: Faults, key: str = "data") -> Survey:
    """What a chest film set holds, without opening an image or a report; raises DataError where it is no such set.

    `key` is where `config` stands, for messages: data, or data.parts.NAME.data for a part of a composite.
    """
    if config.root is None:
        raise DataError(f"{key}.root of {config.name} has no value: give the folder that the set lies in")
    if isinstance(config, MimicCxrConfig):
        return survey_mimic_cxr(config, config.root, faults, key)
    if isinstance(config, OpenIConfig):
        return survey_open_i(config, config.root, faults, key)
    return survey_chexpert(config, config.root, faults, key)


def _sides(config: PartConfig, seed: int, key: str = "data") -> tuple[Records, Records | None, Mapping[str, int]]:
    """A set's training side, its own hold-out where it has one and that is wanted, and notes."""
    if isinstance(config, SyntheticCxrConfig):
        records = generate_synthetic_cxr(config, seed)
        return records, None, {"studies generated": len(records), "patients": config.patients}
    if isinstance(config, MimicCxrConfig | OpenIConfig | ChexpertConfig):
        sides = records_of(survey(config, Faults(), key), config, key)
        return sides.training, sides.holdout, sides.notes
    if isinstance(config, PhysioNet2012Config):
        records, notes = read_physionet2012(config.root, key)
    else:
        records, notes = read_manifest(config, key=key)
    return records, None, notes
