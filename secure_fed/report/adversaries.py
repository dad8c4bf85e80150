"""Who sees what, and which epsilon holds against them: read from the run's settings, not from a template.

Every site's guarantee is local, so one figure holds against everybody who sees no more than what left the site.
Masks change what is seen, never the figure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from secure_fed.report import formats, wording
from secure_fed.report.run_folder import RunFolder, Summary

Name = Literal["server", "other_sites", "server_and_sites", "recipient", "insider", "network", "auditor"]
NAMES: tuple[Name, ...] = ("server", "other_sites", "server_and_sites", "recipient", "insider", "network", "auditor")


@dataclass(frozen=True)
class Adversary:
    """One row. `epsilon` is infinite where nothing protects, None where the ledgers do not establish it.

    `guards`: what stands between them and a record.
    """

    name: Name
    who: str
    sees: str
    guards: str
    epsilon: float | None


def adversaries(run: RunFolder | None, epsilon: float | None) -> tuple[Adversary, ...]:
    """The table, for the largest epsilon of any site; without a run what is seen is bounded by what left a site."""
    if run is None:
        return _from_ledgers_alone(epsilon)
    summary = run.summary
    noise = _noise(epsilon)
    corrupt = summary.secagg.corrupt
    fellows = "one site" if (corrupt or 1) == 1 else f"up to {formats.plural(corrupt or 1, 'site')}"
    return (
        Adversary("server", "The server (coordinator)", _server_sees(summary), _server_guards(summary, noise), epsilon),
        Adversary(
            "other_sites",
            "Another site" if fellows == "one site" else f"Other sites, {fellows} together",
            f"{_opened(summary)} and so the model after every round; who took part.",
            noise,
            epsilon,
        ),
        Adversary(
            "server_and_sites",
            f"The server together with {fellows}",
            _colluders_see(summary),
            _colluders_guards(summary, noise),
            epsilon,
        ),
        Adversary(
            "recipient",
            "Whoever receives the model",
            "The model; where they are given the report too: each site's modalities, declared number and rounds.",
            noise,
            epsilon,
        ),
        Adversary(
            "insider",
            "An insider at the site itself",
            "That site's records, keys and stored state. Of other sites: what another site sees.",
            "Nothing of this software: the site's own access control.",
            math.inf,
        ),
        Adversary("network", "The network", _network_sees(run), noise, epsilon),
        Adversary(
            "auditor",
            "The auditor",
            "Ledgers, roster, summary: mechanisms, times, hashes. No record, no update, no private key.",
            f"Charges are fixed by the plan, not by records; with the model in hand {_within(noise)}",
            epsilon,
        ),
    )


def _from_ledgers_alone(epsilon: float | None) -> tuple[Adversary, ...]:
    most = "The ledgers do not say; at most everything that left the site, unmasked."
    noise = _noise(epsilon)
    outside: dict[Name, str] = {
        "server": "The server (coordinator)",
        "other_sites": "Other sites, all of them together",
        "server_and_sites": "The server together with all other sites",
        "recipient": "Whoever receives the model",
    }
    return (
        *(Adversary(name, who, most, noise, epsilon) for name, who in outside.items()),
        Adversary(
            "insider",
            "An insider at the site itself",
            "That site's records, keys and stored state.",
            "Nothing of this software: the site's own access control.",
            math.inf,
        ),
        Adversary("network", "The network", most, noise, epsilon),
        Adversary(
            "auditor",
            "The auditor",
            "The ledgers: mechanisms, times, hashes. No record, no update, no private key.",
            f"Charges are fixed by the plan, not by records; with the model in hand {_within(noise)}",
            epsilon,
        ),
    )


def _noise(epsilon: float | None) -> str:
    if epsilon is None:
        return "Not established: see the ledgers' verdict."
    return "Nothing." if math.isinf(epsilon) else "The site's own noise (differential privacy)."


def _within(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _server_sees(summary: Summary) -> str:
    return f"{wording.seen_by_server(summary)} It computes every model."


def _opened(summary: Summary) -> str:
    if summary.secagg.mode == "off":
        return "The model or the means that the server sends"
    return "The opened sum of every component in every round"


def _server_guards(summary: Summary, noise: str) -> str:
    if summary.secagg.mode == "off":
        return f"No masks. {noise}"
    held = "semi-malicious" if wording.is_k_regular(summary) else "malicious"
    text = f"Masks against a {held} server"
    if summary.dp_only:
        text += f", not for {formats.listed(list(summary.dp_only))}"
    return f"{text}; without them {_within(noise)}"


def _colluders_see(summary: Summary) -> str:
    if summary.secagg.mode == "off":
        return "Every site's own update."
    if not summary.secagg.corrupt:
        return "With C = 0 the masks stand against no collusion: the updates of the other sites can be laid open."
    least = min((f.floor for f in summary.summed.values() if f.floor is not None and not f.dp_only), default=None)
    left = (
        "" if least is None else f" It holds at least {formats.plural(least - summary.secagg.corrupt, 'honest site')}."
    )
    alone = f" Of {formats.listed(list(summary.dp_only))}, possibly one site's update." if summary.dp_only else ""
    return f"The opened sums less the colluders' own updates.{left}{alone}"


def _colluders_guards(summary: Summary, noise: str) -> str:
    if summary.secagg.mode == "off" or not summary.secagg.corrupt:
        return noise
    return f"Masks between the honest sites; without them {_within(noise)}"


def _network_sees(run: RunFolder) -> str:
    travelled = "every site's own update" if run.summary.secagg.mode == "off" else "masked vectors, opened sums"
    return (
        f"Without TLS: headers, {travelled}, signatures, sizes, times. "
        f"Engine of this run: {run.summary.engine}, a simulation on one machine."
    )
