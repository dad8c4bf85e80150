"""Another signing key for a site that goes on: its ledger hands over from the old key to the new one.

At every moment the key that the ledger goes by lies in the home, so a crash between two writes costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_fed.client.home import Home
from secure_fed.client.witness import require_whole
from secure_fed.errors import ConfigError, SecAggError
from secure_fed.identity import Roster, SigningKey, fingerprint
from secure_fed.ledger import Ledger

NOT_ON_ROSTER = "key_not_on_roster"
"""The site has rotated its key and the consortium has not published it yet."""


@dataclass(frozen=True)
class NewKey:
    """A site's new public key (32 bytes), and which ledger record hands over to it; None where there is no ledger."""

    site: str
    public: bytes
    record: int | None


def rotate_key(home: Home) -> NewKey:
    """Give the site a fresh identity; a halted site may do so too.

    Ledger, journal, pending update, model and halt stay. Open sessions and keys prepared for the next round are
    void. Whatever stops this before the ledger's record leaves the old key in force; after it `Home.signing_key`
    finishes. Raises ConfigError where the old key is lost, LedgerError where the ledger cannot be continued,
    LedgerBehind where the home remembers a longer one.
    """
    with home.alone():
        return _rotate(home)


def _rotate(home: Home) -> NewKey:
    site, fresh = home.policy().site, SigningKey.generate()
    if not Ledger.is_begun(home.ledger_path):
        require_whole(home, site, ())
        _lay_ready(home, fresh)  # nothing was signed that the new key would have to follow
        home.take_next_key()
        return NewKey(site, fresh.public_bytes, None)
    with Ledger.open(home.ledger_path, site, _old_key(home)) as ledger:
        require_whole(home, site, ledger.records)
        _lay_ready(home, fresh)
        record = ledger.rekey(fresh)
        home.take_next_key()
    return NewKey(site, fresh.public_bytes, record.seq)


def require_named(site: str, public: bytes, roster: Roster) -> None:
    """Refuse to sign for peers who would have to take it for a forgery: the roster must give the site this key.

    Raises SecAggError(key_not_on_roster) where it gives another one.
    """
    member = roster.members.get(site)
    if member is None or member.public_key != public.hex():
        raise SecAggError(
            NOT_ON_ROSTER,
            f"{site} signs with {fingerprint(public)}, and roster version {roster.version} does not say so; the "
            "consortium has to publish a higher version",
        )


def _old_key(home: Home) -> SigningKey:
    try:
        return home.signing_key()
    except ConfigError as error:
        raise ConfigError(
            f"{error} Only the old key can sign that a new one follows it. If it is lost, this home has come to its "
            "end: keep its ledger for the auditors and begin a new home, whose ledger counts from zero. Then set "
            f"lifetime_claim: false there, and take off its epsilon by hand what `secure-fed verify {home.root}` says "
            "was spent on these data."
        ) from error


def _lay_ready(home: Home, fresh: SigningKey) -> None:
    """Put the new key on disk before anything needs it. One that lies there never came into force."""
    home.next_key_path.unlink(missing_ok=True)
    fresh.save(home.next_key_path)
