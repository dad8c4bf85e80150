"""Probabilities for new records from a finished run, as CSV; whatever modality is missing is filled in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from secure_fed.config import load_config
from secure_fed.data import ManifestConfig, PhysioNet2012Config, Records, load, manifest_for, read_manifest
from secure_fed.data.config import DataConfig
from secure_fed.errors import DataError
from secure_fed.federation.facts import Federation
from secure_fed.federation.members import sites_of
from secure_fed.federation.public_set import context_of
from secure_fed.identity import Roster
from secure_fed.server.evaluation import predict
from secure_fed.server.public_set import load_public_set
from secure_fed.server.training import load_model


def predict_csv(run: Path, data: Path) -> str:
    """CSV text with a header, a row per record in the order of `data`: id, then a probability per label.

    `data` is a manifest CSV, or for a physionet2012 run a folder as released. Raises ConfigError where `run` is
    no run folder, DataError where its model, the public set that its method imputes from, or `data` cannot be read.
    """
    config = load_config(run)
    federation = Federation(config, sites_of(Roster.load(run / "roster.json")))
    model = federation.new_model()
    load_model(run / "model.safetensors", model)
    context = context_of(federation, model, load_public_set(run, federation))
    records = _read(config.data, federation, data)
    probabilities = predict(federation.method, model, model.prepare(records), context)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *federation.schema.labels])
    for identifier, row in zip(records.unit_ids, probabilities, strict=True):
        writer.writerow([identifier, *(f"{value:.6f}" for value in row)])
    return text.getvalue()


def _read(config: DataConfig, federation: Federation, data: Path) -> Records:
    if not data.exists():
        raise DataError(f"{data} does not exist; give --data a manifest CSV (docs/data.md describes it)")
    if data.is_dir() or data.name.endswith(".tar.gz"):
        if not isinstance(config, PhysioNet2012Config):
            raise DataError(
                f"{data} is no CSV: a run on {config.name} predicts for a manifest CSV with the columns id, "
                f"{', '.join(federation.schema.names)}"
            )
        return load(PhysioNet2012Config(root=data), seed=0).records
    if isinstance(config, ManifestConfig):
        manifest = config.model_copy(update={"path": data})
    else:
        manifest = manifest_for(federation.schema, data)
    records, _ = read_manifest(manifest, require_labels=False)
    return records
