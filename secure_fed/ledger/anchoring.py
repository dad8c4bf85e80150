"""Anchors that others kept, against a ledger: what they show to be missing from its end, or to be written anew.

An anchor counts where a key of that very ledger signed it; whoever hands it over need not be believed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from secure_fed.errors import ConfigError, LedgerError
from secure_fed.ledger.anchor import Anchor
from secure_fed.ledger.record import Record, parse_line

WITNESS = "witness.jsonl"
ANCHORS = "anchors.jsonl"
"""In a run folder: what the coordinator was told of every ledger when the run was over."""
_LEDGER = "ledger.jsonl"


@dataclass(frozen=True)
class Kept:
    """An anchor, and the site whose home it lay in: None where only a file was given."""

    anchor: Anchor
    keeper: str | None


@dataclass(frozen=True)
class Anchors:
    """All anchors that an auditor was given, and what was wrong with the files they came in."""

    kept: tuple[Kept, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Anchoring:
    """What anchors say of one ledger: its first `records` records are vouched for, 0 where nobody saw any."""

    records: int
    problems: tuple[str, ...] = ()  # without the site's name
    remarks: tuple[str, ...] = ()


def read_anchors(paths: Iterable[Path]) -> Anchors:
    """The anchors of files (a line each), of site homes and of run folders.

    A run folder has the `witness.jsonl` of every home in it, and the `anchors.jsonl` of its coordinator.

    A last line that a crash left unfinished is a remark. Raises ConfigError where a path holds no anchors or any
    other line is none: what would tell against a ledger must not get lost in silence.
    """
    kept: list[Kept] = []
    remarks: list[str] = []
    for path in paths:
        for file, keeper in _files(path):
            found, torn = _read(file)
            kept += [Kept(anchor, keeper) for anchor in found]
            if torn:
                remarks.append(f"the last line of the anchors {'kept by ' + keeper if keeper else 'given'} is torn")
    return Anchors(tuple(kept), tuple(remarks))


def check_anchors(records: Sequence[Record], kept: Iterable[Kept], trusted: Collection[str]) -> Anchoring:
    """Hold a checked chain against the anchors of its site. `trusted`: the public keys (hex) that count."""
    site = records[0].site
    counted: list[Kept] = []
    strangers = own = 0
    for item in kept:
        if item.anchor.site != site:
            continue
        if not any(item.anchor.signed_by(bytes.fromhex(key)) for key in trusted):
            strangers += 1
        elif item.keeper == site:
            own += 1
        else:
            counted.append(item)
    remarks = []
    if strangers:
        remarks.append(f"{strangers} anchors ignored: signed by a key that is not this ledger's")
    if own:
        remarks.append(f"{own} anchors ignored: the site kept them itself")
    agreeing = [item.anchor.length for item in counted if item.anchor.agrees(records)]
    return Anchoring(max(agreeing, default=0), tuple(_contradictions(records, counted)), tuple(remarks))


def _contradictions(records: Sequence[Record], counted: Iterable[Kept]) -> Iterable[str]:
    """The earliest record that is another one than was seen, and how much was cut off at the most."""
    others = sorted((k for k in counted if not k.anchor.agrees(records)), key=lambda k: k.anchor.length)
    anew = next((k for k in others if k.anchor.length <= len(records)), None)
    if anew is not None:
        yield (
            f"was written anew: record {anew.anchor.length - 1} is not the one that an anchor kept by "
            f"{anew.keeper or 'others'} saw"
        )
    if others and others[-1].anchor.length > len(records):
        longest = others[-1]
        missing = longest.anchor.length - len(records)
        yield (
            f"its last {f'{missing} records were' if missing > 1 else 'record was'} cut off: an anchor kept by "
            f"{longest.keeper or 'others'} saw {longest.anchor.length} records"
        )


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """The files of anchors under a path, each with the site that kept it."""
    if path.is_file():
        return [(path, None)]
    homes = sorted((path / "sites").iterdir()) if (path / "sites").is_dir() else [path]
    files = [(home / WITNESS, _owner(home)) for home in homes if (home / WITNESS).is_file()]
    files += [(path / ANCHORS, None)] if (path / ANCHORS).is_file() else []
    if not files:
        raise ConfigError(
            f"{path} holds no anchors: give a file of anchors, a site's home (with {WITNESS}) or a run folder whose "
            "sites kept some."
        )
    return files


def _owner(home: Path) -> str | None:
    """Whose home it is, by the first record of its ledger."""
    try:
        with (home / _LEDGER).open("rb") as file:
            return parse_line(file.readline().removesuffix(b"\n")).site
    except (OSError, LedgerError):
        return None


def _read(path: Path) -> tuple[list[Anchor], bool]:
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"The anchors {path} cannot be read: {error.strerror}.") from error
    anchors = []
    for number, line in enumerate(lines, 1):
        try:
            anchors.append(Anchor.from_line(line))
        except LedgerError as error:
            raise ConfigError(f"The anchors {path}: line {number} {error}.") from error
    if not tail:
        return anchors, False
    try:
        return [*anchors, Anchor.from_line(tail)], False
    except LedgerError:
        return anchors, True
