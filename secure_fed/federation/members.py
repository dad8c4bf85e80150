"""The members of a run as the roster names them."""

from __future__ import annotations

from secure_fed.errors import ConfigError
from secure_fed.federation.facts import Site
from secure_fed.identity import Roster


def sites_of(roster: Roster) -> tuple[Site, ...]:
    """Every member of the roster, sorted by name; raises ConfigError where one declares no public count."""
    sites = []
    for name, member in sorted(roster.members.items()):
        if member.declared_n is None:
            raise ConfigError(f"the roster gives {name} no declared_n; rates, weights and delta stand on that number")
        sites.append(Site(name, frozenset(member.owns), member.declared_n))
    return tuple(sites)
