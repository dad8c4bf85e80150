"""Signed requests to the sites and what comes back: bytes counted, codes remembered, silent sites known.

Whoever lacks something that a request stands on is asked again at once, with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from secure_fed.federation.wire import OK, PRESENT, Array, Parcel, Transport, hash_arrays
from secure_fed.identity import SigningKey
from secure_fed.server.announced import Announced

_CODE = re.compile(r"[a-z_]{1,40}")

Ask = Callable[[Mapping[str, Parcel], Mapping[str, Array], Collection[str]], Iterable[tuple[str, Parcel]]]
"""(requests, arrays, who is not waited for) -> (site, answer)."""


@dataclass
class Traffic:
    """Payload bytes of a round, its exchanges, and who answered with which code."""

    bytes_up: int = 0
    bytes_down: int = 0
    exchanges: int = 0
    codes: dict[str, str] = field(default_factory=dict)


class Exchanges:
    """Requests signed with the coordinator's key, over a transport.

    `lost`: sites that said nothing when a session began, and have not answered since. Sessions are made without
    waiting for them.
    """

    def __init__(self, transport: Transport, key: SigningKey) -> None:
        self.lost: set[str] = set()
        self._transport = transport
        self._key = key

    def send(
        self, traffic: Traffic, requests: Mapping[str, Parcel], arrays: Mapping[str, Array], optional: Collection[str]
    ) -> Iterator[tuple[str, Parcel]]:
        """Sign, exchange, count bytes. A bad code is remembered, not trusted.

        `arrays` go with the requests that announce a model.
        """
        hashes = {True: hash_arrays(arrays), False: hash_arrays({})}
        signed = {
            site: replace(request, arrays=arrays if request.announcement else {}).signed(
                self._key, hashes[bool(request.announcement)]
            )
            for site, request in requests.items()
        }
        traffic.exchanges += 1
        traffic.bytes_down += sum(parcel.size for parcel in signed.values())
        heard = set()
        for site, answer in self._transport.exchange(signed, optional):
            if not _CODE.fullmatch(answer.code):
                answer = replace(answer, code="malformed_message")
            traffic.bytes_up += answer.size
            if answer.code in PRESENT:
                heard.add(site)
            if answer.code != OK:
                traffic.codes[site] = answer.code
            yield site, answer
        self.lost -= heard
        self.lost |= {site for site in signed if signed[site].action == "advertise"} - heard


def asked(
    ask: Ask, requests: Mapping[str, Parcel], announced: Announced | None, optional: Collection[str] = ()
) -> dict[str, Parcel]:
    """What `ask` brings; who lacks the public set or is behind is asked again at once, with what it lacks."""
    if announced is None:
        return dict(ask(requests, {}, optional))
    answers = dict(ask(requests, announced.arrays, optional))
    for code, arrays in announced.remedies():
        lacking = {site for site, answer in answers.items() if answer.code == code and requests[site].announcement}
        if lacking:
            answers |= ask({site: requests[site] for site in lacking}, arrays(), ())
    return answers
