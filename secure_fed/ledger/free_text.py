"""Words that a ledger has no place for: paths and this machine's name, which would tell a stranger about the site.

A ledger is handed to auditors and cannot be edited afterwards, so a note with such words is not written.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

from secure_fed.ledger.record import Record

# Every other text of a record is fixed by a pattern or a list of words (a test compares this with the schema).
FREE_FIELDS = frozenset(("components", "data_set", "method", "name", "phase", "rng", "run", "text", "versions"))
# Names that the software gives: a machine that is called "fusion" must not stop an export.
_GIVEN_BY_SOFTWARE = frozenset(("components", "method", "name", "phase", "rng"))

_PATHS = re.compile(
    r"""
    \w[\w+.-]*://\S+                                                # an address: it names a host or a file
    | (?:^|(?<=[\s"'=:(\[{<,;|`]))/{1,2}(?:[A-Za-z_.]|\d+/)\S*      # /home/x, //server/x; not 3/4, not and/or
    | (?<!\w)~(?:[A-Za-z_][\w.-]*)?/\S*                             # ~/x, ~name/x
    | \$\{?HOME\b\S* | %USERPROFILE%\S*
    | (?<!\w)[A-Za-z]:[\\/]\S*                                      # C:\x
    | \\\\[\w.-]+\\\S*                                              # \\server\share
    """,
    re.VERBOSE,
)


def telltale(text: str, *, host: bool = True) -> str | None:
    """What in `text` names a place on a machine, or with `host` this machine itself; None where nothing does."""
    found = _PATHS.search(text)
    if found is not None:
        return f"the path or address {found.group().strip()!r}"
    names = _host_names() if host else ()
    said = next((name for name in names if re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", text, re.I)), None)
    return None if said is None else f"this machine's name {said!r}"


def telltales(record: Record) -> Iterator[str]:
    """`<field> holds <what>` for every free text of a record that tells of a machine."""
    body = record.body.model_dump(mode="json")
    for field, text in _free_texts(body):
        found = telltale(text, host=field not in _GIVEN_BY_SOFTWARE)
        if found is not None:
            yield f"{field} holds {found}"


def _free_texts(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    """(field, text) of every string below a free field; in a mapping of free words the keys count too."""
    if isinstance(value, str):
        if field in FREE_FIELDS:
            yield field, value
    elif isinstance(value, dict):
        for key, item in value.items():
            below = field if field in FREE_FIELDS else str(key)
            if field in FREE_FIELDS:
                yield field, str(key)
            yield from _free_texts(item, below)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _free_texts(item, field)


def _host_names() -> tuple[str, ...]:
    """The machine's full and short name; none that everybody's machine has."""
    full = socket.gethostname()
    return tuple(dict.fromkeys(name for name in (full, full.split(".")[0]) if len(name) > 1 and name != "localhost"))
