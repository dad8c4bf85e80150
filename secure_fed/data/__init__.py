"""What a record is, and where records come from: readers of real data sets, a synthetic one, partitions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from secure_fed.data.config import DataConfig, ManifestConfig, PhysioNet2012Config, SyntheticCxrConfig
from secure_fed.data.manifest import manifest_for, read_manifest, schema_of_manifest, write_manifest
from secure_fed.data.physionet2012 import SCHEMA as _PHYSIONET2012_SCHEMA
from secure_fed.data.physionet2012 import read_physionet2012
from secure_fed.data.records import ModalitySpec, Records, Schema
from secure_fed.data.synthetic_cxr import generate_synthetic_cxr, schema_of_synthetic_cxr

__all__ = [
    "DataConfig",
    "Loaded",
    "ManifestConfig",
    "ModalitySpec",
    "PhysioNet2012Config",
    "Records",
    "Schema",
    "SyntheticCxrConfig",
    "load",
    "manifest_for",
    "read_manifest",
    "schema_of",
    "write_manifest",
]


@dataclass(frozen=True)
class Loaded:
    """Records, and what a person should know of the reading: what was counted and skipped, in order."""

    records: Records
    notes: Mapping[str, int]


def load(config: DataConfig, seed: int) -> Loaded:
    """Reads or generates a data set. `seed` matters to the synthetic one only.

    Raises DataError for a file that is missing, empty, malformed or of another format.
    """
    if isinstance(config, SyntheticCxrConfig):
        records = generate_synthetic_cxr(config, seed)
        return Loaded(records, {"studies generated": len(records), "patients": config.patients})
    if isinstance(config, PhysioNet2012Config):
        return Loaded(*read_physionet2012(config.root))
    return Loaded(*read_manifest(config))


def schema_of(config: DataConfig) -> Schema:
    """The schema that `load` will give, without reading any data."""
    if isinstance(config, SyntheticCxrConfig):
        return schema_of_synthetic_cxr(config)
    if isinstance(config, PhysioNet2012Config):
        return _PHYSIONET2012_SCHEMA
    return schema_of_manifest(config)
