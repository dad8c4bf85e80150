"""A ledger to hand over: the same bytes, after a look at what they would tell of the machine they come from.

Nothing is left out or rewritten: a record that tells too much stops the export, because a changed one proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secure_fed.errors import ConfigError, DataError, LedgerError
from secure_fed.files import write_durably
from secure_fed.ledger.anchoring import WITNESS, read_anchors
from secure_fed.ledger.chain import read_chain
from secure_fed.ledger.free_text import telltales
from secure_fed.ledger.verify import ledger_file


@dataclass(frozen=True)
class Exported:
    """What was handed over: records, their bytes, and what a crash had left behind them, which stays here."""

    site: str
    records: int
    length: int
    torn: int
    anchors: int | None


def export_ledger(path: Path, output: Path, anchors: Path | None = None) -> Exported:
    """Copy the ledger of a home, or a ledger file, to `output`; the anchors that the home kept to `anchors`.

    Nothing is overwritten, and a read-only home will do. Raises LedgerError where the chain or a signature does not
    hold, ConfigError where there is no ledger or no anchor, a target exists, or a text names a path or this machine,
    DataError where a target cannot be written.
    """
    source = ledger_file(path)
    chain = read_chain(source)
    if chain.problem is not None:
        raise LedgerError(f"The ledger {source}: record {len(chain.records)} {chain.problem}. It is not exported.")
    if not chain.records:
        raise LedgerError(f"The ledger {source} holds no whole record.")
    told = next((f"record {r.seq}: {found}" for r in chain.records for found in telltales(r)), None)
    if told is not None:
        raise ConfigError(
            f"The ledger {source} is not exported: {told}. A record cannot be changed: let the auditor look at this "
            "ledger where it is."
        )
    witnessed = None if anchors is None else _anchor_lines(path)
    _require_free(*([output] if anchors is None else [output, anchors]))
    # A record is its own only encoding: these are the file's bytes, as they were when they were checked.
    data = b"".join(record.line() + b"\n" for record in chain.records)
    _write(output, data)
    if anchors is not None and witnessed is not None:
        _write(anchors, b"".join(line + b"\n" for line in witnessed))
    site = chain.records[0].site
    kept = None if witnessed is None else len(witnessed)
    return Exported(site, len(chain.records), len(data), len(chain.torn), kept)


def _anchor_lines(home: Path) -> list[bytes]:
    if not home.is_dir():
        raise ConfigError(f"{home} is a file: only a site's home keeps anchors of others, in {WITNESS}.")
    return [kept.anchor.to_line() for kept in read_anchors([home]).kept]


def _require_free(*targets: Path) -> None:
    taken = [target for target in targets if target.exists()]
    if taken:
        raise ConfigError(f"The file {taken[0]} exists already and is not overwritten.")
    if len(set(targets)) != len(targets):
        raise ConfigError(f"Ledger and anchors cannot both go to {targets[0]}.")


def _write(target: Path, data: bytes) -> None:
    try:
        write_durably(target, data, overwrite=False)
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror}. Make room and the folder writable.") from error
