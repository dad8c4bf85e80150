"""Who shares with whom and masks against whom: everybody, or in large cohorts the k-regular graph of SecAgg+.

Bell et al. (CCS 2020): degree and threshold follow from exact hypergeometric tails over whole numbers.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from math import comb

from secure_fed.errors import ConfigError
from secure_fed.secagg.encoding import digest

SIGMA = 40
"""Statistical security: one session leaks a secret or a partial sum with probability below 2^-SIGMA."""
ETA = 20
"""Reliability: some secret does not come back with probability below 2^-ETA."""


@dataclass(frozen=True)
class KRegular:
    """The graph's numbers: every member has `degree` neighbours, and `threshold` shares open a secret.

    Raises:
        ConfigError: an odd degree or one below 2, or a threshold outside 2..degree.
    """

    degree: int
    threshold: int

    def __post_init__(self) -> None:
        if self.degree < 2 or self.degree % 2:
            raise ConfigError(f"secagg graph degree={self.degree}: an even number from 2 on is needed")
        if not 2 <= self.threshold <= self.degree:
            raise ConfigError(f"secagg graph threshold={self.threshold} is not within 2..{self.degree}, the degree")

    def check(self, members: int, corrupt: int, dropped: int) -> None:
        """Whether the graph protects and serves `members` of whom `corrupt` collude and `dropped` fall silent.

        Raises:
            ConfigError: names the condition that fails, and the way out.
        """
        if self.degree >= members - 1:
            raise ConfigError(
                f"secagg graph degree={self.degree} with n={members} members is no less than the complete graph; "
                "leave graph out"
            )
        lowest = _lowest_private_threshold(members, corrupt, self.degree, SIGMA)
        if self.threshold < lowest:
            raise ConfigError(
                f"secagg graph threshold={self.threshold}: among {self.degree} neighbours {corrupt} corrupt of "
                f"{members} members could open a secret; at least {lowest} is needed, take what k_regular computes"
            )
        if not _is_reliable(members, dropped, self.degree, self.threshold, ETA):
            raise ConfigError(
                f"secagg graph degree={self.degree}, threshold={self.threshold}: with {dropped} drop-outs of "
                f"{members} members a secret may not come back; raise min_cohort, so that fewer may drop out, "
                "or take what k_regular computes for that many"
            )
        if not stays_connected(members, corrupt + dropped, self.degree, SIGMA):
            raise ConfigError(
                f"secagg graph degree={self.degree} may fall apart without {corrupt} corrupt and {dropped} dropped "
                f"of {members} members; raise min_cohort, or take what k_regular computes"
            )


@lru_cache(maxsize=64)
def k_regular(
    members: int,
    corrupt_fraction: float,
    dropout_fraction: float,
    sigma: int = SIGMA,
    eta: int = ETA,
    semi_malicious: bool = True,
) -> KRegular:
    """The smallest even degree k, with its threshold t, that meets the three conditions of SecAgg+.

    With C = floor(corrupt_fraction n) and D = floor(dropout_fraction n) of n members (Bell et al. 2020, section 3):
    (1) privacy: n P[Hyp(n-1, C, k) >= t1] < 2^-(sigma+1): no honest member has t1 corrupt neighbours;
    (2) reliability: n P[Hyp(n-1, D, k) >= k-t+1] < 2^-eta: every member keeps t neighbours;
    (3) connectivity without C + D members, with probability at least 1 - 2^-sigma (`stays_connected`).
    t is the smallest t1 of (1), or semi-malicious floor((k + t1) / 2) + 1: then no t of a member's holders can
    give its one secret while t others give the other.

    Raises:
        ConfigError: a fraction outside [0, 1), or no degree below n - 1 will do.
    """
    for name, fraction in (("corrupt_fraction", corrupt_fraction), ("dropout_fraction", dropout_fraction)):
        if not 0 <= fraction < 1:
            raise ConfigError(f"secagg graph {name}={fraction} is not within [0, 1)")
    corrupt, dropped = _share_of(members, corrupt_fraction), _share_of(members, dropout_fraction)
    for degree in range(2, members - 1, 2):
        lowest = _lowest_private_threshold(members, corrupt, degree, sigma)
        threshold = max(2, (degree + lowest) // 2 + 1 if semi_malicious else lowest)
        if (
            threshold <= degree
            and _is_reliable(members, dropped, degree, threshold, eta)
            and stays_connected(members, corrupt + dropped, degree, sigma)
        ):
            return KRegular(degree, threshold)
    raise ConfigError(
        f"secagg graph: no k-regular graph of {members} members stands {corrupt} corrupt and {dropped} dropped "
        f"({'semi-malicious' if semi_malicious else 'semi-honest'} server, sigma={sigma}, eta={eta}); use the complete "
        "graph, or lower max_corrupt or max_dropout"
    )


def hypergeometric_tail(population: int, marked: int, draws: int, least: int) -> tuple[int, int]:
    """P[Hyp(population, marked, draws) >= least] as numerator and denominator, exactly.

    The number of marked ones among `draws` drawn without putting back.
    """
    favourable = sum(
        comb(marked, count) * comb(population - marked, draws - count)
        for count in range(max(least, 0), min(draws, marked) + 1)
    )
    return favourable, comb(population, draws)


def _share_of(members: int, fraction: float) -> int:
    """floor(fraction n), with the fraction that was meant: 0.29 of 100 are 29, and a third of 300 are 100."""
    return int(Fraction(fraction).limit_denominator(10**6) * members)


def _lowest_private_threshold(members: int, corrupt: int, degree: int, sigma: int) -> int:
    """The smallest t with n P[Hyp(n-1, C, k) >= t] < 2^-(sigma+1); above k where no t will do."""
    population, limit = members - 1, comb(members - 1, degree)
    favourable = 0
    for count in range(min(degree, corrupt), 0, -1):
        favourable += comb(corrupt, count) * comb(population - corrupt, degree - count)
        if members * favourable << (sigma + 1) >= limit:
            return count + 1
    return 1


def _is_reliable(members: int, dropped: int, degree: int, threshold: int, eta: int) -> bool:
    favourable, total = hypergeometric_tail(members - 1, dropped, degree, degree - threshold + 1)
    return members * favourable << eta < total


@lru_cache(maxsize=4096)
def stays_connected(nodes: int, removed: int, degree: int, sigma: int = SIGMA) -> bool:
    """Whether the Harary graph on a random order falls apart with probability below 2^-sigma.

    Every node is joined with the degree / 2 next ones on either side of a ring. The graph without the removed
    nodes falls apart only if two disjoint runs of degree / 2 neighbouring places, with a node left on either
    side, are all removed: at most nodes (nodes - degree - 1) / 2 pairs of runs, each with probability
    C(removed, degree) / C(nodes, degree). This union bound is exact where it is zero (removed < degree).
    """
    if degree >= nodes - 1:
        return True
    pairs = nodes * (nodes - degree - 1)
    return pairs * comb(min(removed, nodes), degree) << sigma < 2 * comb(nodes, degree)


@lru_cache(maxsize=1024)
def masking_degree(owners: int, corrupt: int, dropped: int, degree: int) -> int:
    """How many neighbours an owner masks a component against: `degree`, more where needed, or all the others.

    All corrupt members may be owners of one component, so its graph is checked on its own: it must stay
    connected without `corrupt` and `dropped` of its `owners`.
    """
    return next(
        (wider for wider in range(degree, owners - 1, 2) if stays_connected(owners, corrupt + dropped, wider)),
        owners - 1,
    )


@dataclass(frozen=True)
class Graph:
    """An undirected graph: each node of the ring `order` is joined with the degree / 2 next on either side.

    A degree of at least len(order) - 1 makes it complete.
    """

    order: tuple[str, ...]
    degree: int

    @cached_property
    def _place(self) -> dict[str, int]:
        return {node: place for place, node in enumerate(self.order)}

    @cached_property
    def _nodes(self) -> frozenset[str]:
        return frozenset(self.order)

    def neighbours(self, node: str) -> frozenset[str]:
        """The nodes that `node` is joined with."""
        if self.degree >= len(self.order) - 1:
            return self._nodes - {node}
        place, count = self._place[node], len(self.order)
        steps = range(1, self.degree // 2 + 1)
        return frozenset(self.order[(place + sign * step) % count] for step in steps for sign in (1, -1))


@lru_cache(maxsize=64)
def random_graph(seed: bytes, purpose: tuple[str, ...], nodes: Collection[str], degree: int) -> Graph:
    """The graph on the order of SHA-256 over seed, purpose and node: the same for all who know the seed.

    `nodes` is a frozenset or a tuple of distinct names; the order does not depend on theirs.
    """
    if degree >= len(nodes) - 1:
        return Graph(tuple(sorted(nodes)), degree)
    return Graph(tuple(sorted(nodes, key=lambda node: digest("graph", [seed, list(purpose), node]))), degree)
