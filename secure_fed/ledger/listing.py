"""A ledger for reading: what every record says in a line, and where the budget stands.

Reads and never judges beyond the chain: whether charges keep to their plans is `verify`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.accounting import Mechanism
from secure_fed.errors import ConfigError
from secure_fed.identity import fingerprint
from secure_fed.ledger.budget import Standing, standing
from secure_fed.ledger.chain import Chain, read_chain
from secure_fed.ledger.record import (
    Body,
    Close,
    Genesis,
    Note,
    Off,
    Plan,
    Record,
    Refusal,
    Rekey,
    Reserve,
    Settle,
)
from secure_fed.ledger.verdict import finite
from secure_fed.ledger.verify import LEDGER, ledger_file


@dataclass(frozen=True)
class Listing:
    """One ledger: `records` are those that were asked for, `problem` is what is wrong with its chain."""

    site: str
    length: int
    records: tuple[Record, ...]
    books: Standing | None
    problem: str | None

    def to_json(self) -> dict[str, object]:
        """Plain JSON values: every record with its body, and where the budget stands."""
        return {
            "site": self.site,
            "length": self.length,
            "problem": self.problem,
            "standing": None if self.books is None else _standing_json(self.books),
            "records": [
                {
                    "seq": record.seq,
                    "time": record.time,
                    "kind": record.kind,
                    "what": describe_record(record.body),
                    "body": record.body.model_dump(mode="json"),
                    "hash": record.hash,
                }
                for record in self.records
            ],
        }


def list_ledgers(path: Path, *, run: str | None = None, tail: int | None = None) -> tuple[Listing, ...]:
    """The ledgers of a run folder, a home or a file; of their records those of one run, the last `tail` of them.

    Raises ConfigError where there is no ledger, no record of `run` in any, or `tail` is below 1, LedgerError where
    a ledger cannot be read.
    """
    if tail is not None and tail < 1:
        raise ConfigError(f"tail={tail}: give the number of records to show, 1 or more.")
    found = tuple(_list(name, ledger, run, tail) for name, ledger in _ledgers_under(path))
    if run is not None and not any(listing.records for listing in found):
        raise ConfigError(f"{path} holds no record of run {run!r}.")
    return found


def _ledgers_under(path: Path) -> tuple[tuple[str, Path], ...]:
    """(name, file) of every ledger of a run folder, of a home, or the file itself; ConfigError where there is none."""
    if (path / "sites").is_dir():
        homes = sorted((path / "sites").iterdir())
        found = tuple((home.name, home / LEDGER) for home in homes if (home / LEDGER).is_file())
        if found:
            return found
    ledger = ledger_file(path)
    return ((ledger.parent.name, ledger),)


def _list(name: str, path: Path, run: str | None, tail: int | None) -> Listing:
    chain = read_chain(path)
    shown = [record for record in chain.records if run in (None, getattr(record.body, "run", None))]
    return Listing(
        chain.records[0].site if chain.records else name,
        len(chain.records),
        tuple(shown[-tail:] if tail is not None else shown),
        standing(chain.records) if chain.records else None,
        _problem(chain),
    )


def _problem(chain: Chain) -> str | None:
    if chain.problem is not None:
        return f"record {len(chain.records)} {chain.problem}"
    return None if chain.records else "it holds no whole record"


def describe_record(body: Body) -> str:
    """What a record says, in a line."""
    match body:
        case Genesis():
            limit = "no limit" if body.epsilon_limit is None else f"epsilon at most {body.epsilon_limit:g}"
            return (
                f"{body.data_set}: {limit}, delta {body.delta:g}, per {body.unit}, {body.relation}, "
                f"n {body.declared_n}, key {fingerprint(bytes.fromhex(body.public_key))}"
            )
        case Plan():
            cost = "without privacy" if body.epsilon is None else f"epsilon {body.epsilon:.4g}"
            return f"{body.run}: {body.method}, {cost}, {', '.join(f'{p.name} x {p.rounds}' for p in body.phases)}"
        case Reserve():
            return (
                f"{body.run}: round {body.round} (step {body.step}, attempt {body.attempt}), {body.phase}, "
                f"{describe_mechanism(body.mechanism)}, clip {body.max_grad_norm:g}"
            )
        case Settle():
            return f"{body.run}: round {body.round} (step {body.step}, attempt {body.attempt}) {body.outcome}"
        case Off():
            return f"{body.run}: round {body.round} (step {body.step}), {body.phase}, WITHOUT PRIVACY"
        case Close():
            return f"{body.run}: closed ({body.reason})"
        case Refusal():
            return f"{body.run or 'no run'}: refused with {body.code}" + (
                "" if body.round is None else f" in round {body.round}"
            )
        case Note():
            return f"{body.code}: {body.text}"
        case Rekey():
            return f"the key is now {fingerprint(bytes.fromhex(body.public_key))}"
        case _:
            raise TypeError(f"{type(body).__name__} is no kind of record")


def describe_mechanism(m: Mechanism) -> str:
    """Noise, rate and steps in a few words."""
    rate = "all units" if m.kind == "gaussian" else f"q {m.sample_rate:g}"
    cap = "" if m.batch_cap is None else f" cut at {m.batch_cap}"
    return f"sigma {m.noise_multiplier:.4g}, {rate}{cap}, {m.steps} steps"


def render_listings(listings: Sequence[Listing], console: Console) -> None:
    """Print a table of records and the standing for each ledger."""
    for listing in listings:
        table = Table(title=f"{escape(listing.site)}: {len(listing.records)} of {listing.length} records")
        table.add_column("seq", justify="right")
        for heading in ("time", "kind"):
            table.add_column(heading, no_wrap=True)
        table.add_column("what", overflow="fold")
        for record in listing.records:
            table.add_row(str(record.seq), record.time[:19], record.kind, escape(describe_record(record.body)))
        console.print(table)
        if listing.books is not None:
            console.print(_standing_line(listing.books))
        if listing.problem is not None:
            console.print(f"[bold red]{escape(listing.problem)}[/]")


def _standing_line(books: Standing) -> str:
    limit = books.genesis.epsilon_limit
    return (
        f"epsilon spent {books.spent():.4f}, committed {books.committed():.4f}, "
        f"limit {'none' if limit is None else f'{limit:g}'} (delta {books.genesis.delta:g}); runs: "
        + (escape(", ".join(f"{r.run} ({'closed' if r.closed else 'open'})" for r in books.runs)) or "none")
    )


def _standing_json(books: Standing) -> dict[str, object]:
    return {
        "delta": books.genesis.delta,
        "limit": books.genesis.epsilon_limit,
        "spent": finite(books.spent()),
        "committed": finite(books.committed()),
        "privacy_off": books.is_off,
        "runs": [
            {"run": run.run, "closed": run.closed, "rounds": len(run.rounds), "planned": run.plan is not None}
            for run in books.runs
        ],
    }
