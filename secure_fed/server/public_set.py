"""The public paired set in a run's folder: what the coordinator sends, and what the trained model is used with."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from secure_fed.errors import DataError, SecAggError
from secure_fed.federation.facts import Federation
from secure_fed.federation.public_set import PublicSet, digest_needed
from secure_fed.files import write_durably

FILE = "public_set.safetensors"


def save_public_set(folder: Path, public: PublicSet) -> None:
    """Write the set into a run's folder, whole or not at all."""
    write_durably(folder / FILE, save(dict(public.arrays)), overwrite=True)


def load_public_set(folder: Path, federation: Federation) -> PublicSet | None:
    """The set of a run's folder, the very one that its configuration names; None where its method needs none.

    Raises DataError where the file is missing, damaged or another set.
    """
    digest = digest_needed(federation)
    if digest is None:
        return None
    path = folder / FILE
    try:
        return PublicSet.received(federation.schema, digest, load(path.read_bytes()))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing, and method={federation.method.name} imputes from it: copy it there from the run"
        ) from error
    except (SafetensorError, SecAggError) as error:
        raise DataError(f"{path} is damaged or the set of another run: {error}") from error
