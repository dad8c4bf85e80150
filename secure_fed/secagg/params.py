"""What the members agree on before a run: thresholds and floors, the ring, and the vector's layout.

Both are frozen, checked when made, and hashed into every session id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from secure_fed.errors import ConfigError
from secure_fed.secagg import ring
from secure_fed.secagg.encoding import Value, digest
from secure_fed.secagg.graph import KRegular

SMALLEST_COHORT = 3
COMFORTABLE_COHORT = 5
LARGEST_COMPLETE_ONLY = 100


def default_threshold(members: int, max_corrupt: int) -> int:
    """The smallest t with 2t > n + C (Bonawitz et al. 2017, section 6.2): t = floor((n + C) / 2) + 1."""
    return (members + max_corrupt) // 2 + 1


@dataclass(frozen=True)
class SecAggParams:
    """Thresholds, floors and ring of a run; it protects against the server with up to `max_corrupt` members.

    Attributes:
        members: n, the members of the roster.
        threshold: t, how many must take part in every stage, and how many shares open a secret.
        max_corrupt: C, how many members may collude with a malicious server.
        min_cohort: a client goes on only while at least max(t, min_cohort) take part.
        value_bits: b, the bits of one contribution in fixed point.
        clip: contributions are clipped to [-clip, clip].
        min_contributors: the smallest number of contributors to a component whose sum is opened.
        floors: component -> its own floor, where it differs from `default_floor`.
        dp_only: components whose owners accept a floor below `default_floor`: DP alone protects them.
        graph: None for the complete graph; a k-regular one in cohorts above 100 whose server is at worst
            semi-malicious.

    Raises:
        ConfigError: names the value and the way out.
    """

    members: int
    threshold: int
    max_corrupt: int
    min_cohort: int
    value_bits: int
    clip: float
    min_contributors: int = 2
    floors: Mapping[str, int] = field(default_factory=dict)
    dp_only: frozenset[str] = frozenset()
    graph: KRegular | None = None

    def __post_init__(self) -> None:
        self._check_cohort()
        self._check_graph()
        self._check_floors()
        ring.check_no_overflow(self.members, self.value_bits)
        if not (math.isfinite(self.clip) and self.clip > 0):
            raise ConfigError(f"secagg clip={self.clip} is not a positive finite number")

    def _check_cohort(self) -> None:
        n, t, corrupt = self.members, self.threshold, self.max_corrupt
        if n < SMALLEST_COHORT:
            raise ConfigError(
                f"secagg members={n}: at least {SMALLEST_COHORT} sites are needed, because with two each "
                "reads the other's update off the sum"
            )
        if not 0 <= corrupt < n:
            raise ConfigError(f"secagg max_corrupt={corrupt} is not within 0..{n - 1} for n={n} members")
        if not 2 * t > n + corrupt:
            raise ConfigError(
                f"secagg threshold={t} allows two survivor lists for n={n}, C={corrupt}: 2t > n + C is "
                f"needed, use at least {default_threshold(n, corrupt)}"
            )
        if t > n:
            raise ConfigError(
                f"secagg threshold={t} can never be met by n={n} members; add members or lower max_corrupt={corrupt}"
            )
        if not 1 <= self.min_cohort <= n:
            raise ConfigError(f"secagg min_cohort={self.min_cohort} is not within 1..{n}, the members")

    def _check_graph(self) -> None:
        if self.graph is None:
            return
        if self.members <= LARGEST_COMPLETE_ONLY:
            raise ConfigError(
                f"secagg graph with n={self.members} members: up to {LARGEST_COMPLETE_ONLY} the complete graph is "
                "stronger and fast enough; leave graph out"
            )
        self.graph.check(self.members, self.max_corrupt, self.max_dropped)

    def _check_floors(self) -> None:
        if self.min_contributors < 1:
            raise ConfigError(f"secagg min_contributors={self.min_contributors} is below 1")
        for component, floor in sorted(self.floors.items()):
            if floor < 1:
                raise ConfigError(f"secagg floor {floor} of component {component!r} is below 1")
            if floor < self.default_floor and component not in self.dp_only:
                raise ConfigError(
                    f"secagg floor {floor} of component {component!r} is below max(min_contributors, C + 2)"
                    f" = {self.default_floor}; raise it, or name the component in dp_only if its owners "
                    "accept that differential privacy alone protects it"
                )
        for component in sorted(self.dp_only):
            if self.floor(component) >= self.default_floor:
                raise ConfigError(
                    f"secagg dp_only names component {component!r}, whose floor {self.floor(component)} is "
                    f"not below {self.default_floor}; give it a lower floor or take it out of dp_only"
                )

    @property
    def default_floor(self) -> int:
        """max(min_contributors, C + 2): one honest contributor never faces only corrupt ones."""
        return max(self.min_contributors, self.max_corrupt + 2)

    @property
    def quorum(self) -> int:
        """max(t, min_cohort): below it no client goes on."""
        return max(self.threshold, self.min_cohort)

    @property
    def max_dropped(self) -> int:
        """How many members may fall silent up to stage 3: more, and no client goes on."""
        return self.members - self.quorum

    @property
    def share_threshold(self) -> int:
        """How many shares open a secret: t, or in a k-regular graph the graph's own threshold."""
        return self.threshold if self.graph is None else self.graph.threshold

    @property
    def wire_bits(self) -> int:
        """Bits a value on the wire, 21, 24 or 32: the fewest in which no sum can wrap around."""
        return ring.wire_bits(self.members, self.value_bits)

    def floor(self, component: str) -> int:
        """How many contributors the component needs for its sum to be opened."""
        return self.floors.get(component, self.default_floor)

    def cautions(self) -> tuple[str, ...]:
        """What a report must show: a small cohort, no drop-out allowed, a weaker graph, components under DP only."""
        notes = []
        if self.members < COMFORTABLE_COHORT:
            notes.append(f"{self.members} members: a sum of so few says much about each of them")
        if self.quorum == self.members:
            notes.append(f"no member may drop out: {self.quorum} of {self.members} are needed")
        if self.graph is not None:
            notes.append("k-regular graph: semi-malicious server only")
        notes += [f"component {name}: DP only, floor {self.floor(name)}" for name in sorted(self.dp_only)]
        return tuple(notes)

    def digest(self) -> bytes:
        """SHA-256 over all of it, 32 bytes."""
        cohort: list[Value] = [self.members, self.threshold, self.max_corrupt, self.min_cohort]
        numbers: list[Value] = [self.value_bits, float(self.clip).hex()]
        floors: list[Value] = [self.min_contributors, self.floors, sorted(self.dp_only)]
        graph: list[Value] = [] if self.graph is None else [self.graph.degree, self.graph.threshold]
        return digest("params", [cohort, numbers, floors, graph])


@dataclass(frozen=True)
class ComponentSpec:
    """One named slice of the vector: `size` ring elements, contributed by `owners` only."""

    name: str
    size: int
    owners: frozenset[str]


@dataclass(frozen=True)
class VectorSchema:
    """The vector's layout: ordered components, each with one more ring element that counts contributors.

    Raises:
        ConfigError: no component, a repeated name, an empty slice or a component without owners.
    """

    components: tuple[ComponentSpec, ...]

    def __post_init__(self) -> None:
        names = [spec.name for spec in self.components]
        if not names:
            raise ConfigError("secagg schema has no component; name at least one")
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"secagg schema names {repeated} more than once")
        for spec in self.components:
            if spec.size < 1:
                raise ConfigError(f"secagg component {spec.name!r} has size {spec.size}; it needs at least 1")
            if not spec.owners:
                raise ConfigError(f"secagg component {spec.name!r} has no owner; leave it out of the schema")

    @cached_property
    def by_name(self) -> dict[str, ComponentSpec]:
        """Component name -> spec, in the schema's order."""
        return {spec.name: spec for spec in self.components}

    def owned_by(self, member: str) -> tuple[ComponentSpec, ...]:
        """The components that `member` contributes to, in the schema's order."""
        return tuple(spec for spec in self.components if member in spec.owners)

    def digest(self) -> bytes:
        """SHA-256 over names, sizes and owners, 32 bytes."""
        return self._digest

    @cached_property
    def _digest(self) -> bytes:
        return digest("schema", [[spec.name, spec.size, sorted(spec.owners)] for spec in self.components])
