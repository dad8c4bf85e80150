"""Who holds what: test patients, the patients of each site, and the modalities that a site owns.

Everything is split by patient (the privacy unit): never one on two sides, nor at two sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from secure_fed.data.records import FloatArray, IndexArray, Records, StringArray
from secure_fed.errors import ConfigError, DataError

Scheme = Literal["iid", "dirichlet", "column"]
SCHEMES: tuple[Scheme, ...] = ("iid", "dirichlet", "column")


@dataclass(frozen=True)
class SitesOf:
    """So many sites hold the records of one part (`Records.groups` names it) and own these modalities."""

    part: str
    sites: int
    owned: frozenset[str]


def split_by_unit(records: Records, test_fraction: float, seed: int) -> tuple[IndexArray, IndexArray]:
    """Train and test positions, `test_fraction` of the patients in the test set.

    Raises ConfigError for a fraction outside (0, 1), DataError where one side would be empty.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ConfigError(f"test_fraction={test_fraction}: expected a number between 0 and 1, both excluded")
    units, unit_of = np.unique(records.unit_ids, return_inverse=True)
    held_out = round(test_fraction * len(units))
    if not 0 < held_out < len(units):
        raise DataError(
            f"test_fraction={test_fraction} of {len(units)} patients leaves one side empty: "
            "give more patients or another fraction"
        )
    in_test = np.zeros(len(units), dtype=bool)
    in_test[np.random.default_rng([seed, 1]).permutation(len(units))[:held_out]] = True
    return np.flatnonzero(~in_test[unit_of]), np.flatnonzero(in_test[unit_of])


def partition(records: Records, sites: int, scheme: Scheme, seed: int, *, alpha: float = 0.5) -> list[IndexArray]:
    """Positions of the records of each site, sorted; every record at exactly one site, no site empty.

    iid: patients dealt evenly. dirichlet: equal sites that differ in label prevalence, the more the smaller
    `alpha` (Hsu et al., arXiv 1909.06335). column: by `records.groups`; the sites are dealt to the groups in
    proportion to their patients, and a patient of several groups goes to that of most of his records.
    Raises ConfigError for a bad argument, DataError where there are fewer patients than sites.
    """
    if sites < 1:
        raise ConfigError(f"sites={sites}: expected at least 1")
    units, unit_of = np.unique(records.unit_ids, return_inverse=True)
    if len(units) < sites:
        raise DataError(f"{len(units)} patients cannot be split over sites={sites}: give more data or fewer sites")
    rng = np.random.default_rng([seed, 2])
    if scheme == "iid":
        site_of = np.empty(len(units), dtype=np.int64)
        site_of[rng.permutation(len(units))] = np.arange(len(units)) % sites
    elif scheme == "dirichlet":
        if not 0.0 < alpha < float("inf"):
            raise ConfigError(f"alpha={alpha}: expected a positive number; 0.1 is very uneven, 100 nearly even")
        site_of = _by_label(rng, _class_of_unit(records.labels, unit_of, len(units)), sites, alpha)
    elif scheme == "column":
        if records.groups is None:
            raise ConfigError(
                "federation.partition.scheme=column needs a site column and this data set has none: name one "
                "(data.site for a manifest), or use iid"
            )
        site_of = _by_group(rng, records.groups, unit_of, len(units), sites)
    else:
        raise ConfigError(f"scheme={scheme!r} is unknown: use one of {', '.join(SCHEMES)}")
    return [np.flatnonzero(site_of[unit_of] == site) for site in range(sites)]


def partition_by_part(
    records: Records, layout: Sequence[SitesOf], scheme: Scheme, seed: int, *, alpha: float = 0.5
) -> list[IndexArray]:
    """As `partition`, but each part's records over its own sites, in the order of `layout`; raises the same."""
    parts: list[IndexArray] = []
    for of in layout:
        positions = np.flatnonzero(records.groups == of.part)
        parts += [
            positions[share] for share in partition(records.select(positions), of.sites, scheme, seed, alpha=alpha)
        ]
    return parts


def declared_count(n: int) -> int:
    """The public N of a simulated site: `n` to the nearest 50, at least 50.

    An owner would declare a round number that he is content to publish; rates, denominators and delta checks
    stand on it and never on the exact count, which is private.
    """
    return max(50, 50 * ((n + 25) // 50))


def ownership(
    value: object, modalities: Sequence[str], sites: int, layout: Sequence[SitesOf] = ()
) -> list[frozenset[str]]:
    """The modalities that each site owns, from `"5:1:4"`, `"all"` or a mapping like `{"image": 8, "image+text": 2}`.

    The shorthand is for two modalities: first only : second only : both. With "all" every site owns every one, with
    "data" what `layout`, a composite's, says. Kinds of sites are spread evenly over the site numbers, in the same way
    each time; those of a layout come in its order. Raises ConfigError, naming the value and the way out.
    """
    if layout or value == "data":
        return _laid_out(value, layout, sites)
    if value == "all":
        return [frozenset(modalities)] * sites
    counts = _shorthand(value, modalities) if not isinstance(value, Mapping) else _mapping(value, modalities)
    total = sum(counts.values())
    if total != sites:
        raise ConfigError(
            f"ownership={value!r} describes {total} sites, but federation.sites={sites}: make the two agree"
        )
    return _spread(counts)


def _laid_out(value: object, layout: Sequence[SitesOf], sites: int) -> list[frozenset[str]]:
    if not layout:
        raise ConfigError(
            "federation.ownership=data leaves it to the data who owns what, and only data=composite says so: give "
            "something like '\"5:1:4\"'"
        )
    if value != "data":
        raise ConfigError(
            f"federation.ownership={value!r}: data=composite says itself which sites own what, by data.parts; give "
            "federation.ownership=data"
        )
    owned = [of.owned for of in layout for _ in range(of.sites)]
    if len(owned) != sites:
        counts = " + ".join(f"{of.sites} of {of.part}" for of in layout)
        raise ConfigError(f"data.parts have {counts} sites, but federation.sites={sites}: make the two agree")
    return owned


def apply_ownership(records: Records, owned: frozenset[str]) -> Records:
    """The records as a site sees them that owns only `owned`. Raises ConfigError for an unknown modality."""
    for name in sorted(owned):
        records.schema.modality(name)
    return records.without([name for name in records.schema.names if name not in owned])


def _class_of_unit(labels: FloatArray, unit_of: IndexArray, units: int) -> IndexArray:
    """A class for each patient: the rarest label of his records (0 = none), so that all labels shift."""
    known = np.nan_to_num(labels)
    ever = np.zeros((units, labels.shape[1]), dtype=bool)
    np.logical_or.at(ever, unit_of, known > 0)
    rarest_first = np.argsort(ever.mean(axis=0), kind="stable")
    ordered = ever[:, rarest_first]
    return np.where(ordered.any(axis=1), 1 + ordered.argmax(axis=1), 0).astype(np.int64)


def _by_label(rng: np.random.Generator, class_of: IndexArray, sites: int, alpha: float) -> IndexArray:
    """Each site draws its mixture of classes from Dir(alpha x L x prior) for L classes; patients go to the
    sites that want their class, until a site has its equal share."""
    classes, class_at, counts = np.unique(class_of, return_inverse=True, return_counts=True)
    prior = counts / counts.sum()
    # A gamma of a tiny shape can underflow to zero everywhere; the floor keeps every site possible.
    appetite = rng.standard_gamma(alpha * len(classes) * prior, size=(sites, len(classes))) + 1e-12
    appetite /= appetite.sum(axis=1, keepdims=True)
    units = len(class_of)
    room = np.full(sites, units // sites) + (np.arange(sites) < units % sites)
    site_of = np.empty(units, dtype=np.int64)
    for unit in rng.permutation(units):
        wanted = np.cumsum(appetite[:, class_at[unit]] * room)
        site_of[unit] = site = int(np.searchsorted(wanted, rng.random() * wanted[-1], side="right"))
        room[site] -= 1
    return site_of


def _by_group(rng: np.random.Generator, groups: StringArray, unit_of: IndexArray, units: int, sites: int) -> IndexArray:
    names, group_of = np.unique(groups, return_inverse=True)
    votes = np.zeros((units, len(names)), dtype=np.int64)
    np.add.at(votes, (unit_of, group_of), 1)
    # A group whose patients all belong to others more has no site of its own.
    kept, home = np.unique(votes.argmax(axis=1), return_inverse=True)
    if len(kept) > sites:
        raise ConfigError(
            f"federation.partition.scheme=column finds {len(kept)} groups ({', '.join(names[kept[:8]])}) for "
            f"sites={sites}: give at least {len(kept)} sites"
        )
    sizes = np.bincount(home)
    site_of = np.empty(units, dtype=np.int64)
    first = 0
    for group, count in enumerate(_apportion(sizes, sites)):
        members = rng.permutation(np.flatnonzero(home == group))
        site_of[members] = first + np.arange(len(members)) % count
        first += count
    return site_of


def _apportion(sizes: IndexArray, seats: int) -> list[int]:
    """Seats in proportion to sizes, at least one each: the next seat goes to the largest size a seat."""
    given = [1] * len(sizes)
    while sum(given) < seats:
        given[int(np.argmax(sizes / np.array(given)))] += 1
    return given


def _shorthand(value: object, modalities: Sequence[str]) -> dict[frozenset[str], int]:
    example = '"5:1:4" (first only : second only : both)'
    if isinstance(value, int):
        raise ConfigError(
            f"ownership={value!r} is a number: YAML reads an unquoted 8:0:2 in base 60 (28802). "
            f"Quote it, as in {example}"
        )
    if not isinstance(value, str):
        raise ConfigError(
            f"ownership={value!r}: expected {example}, all, or a mapping like {{image: 8, image+text: 2}}"
        )
    if len(modalities) != 2:
        raise ConfigError(
            f"ownership={value!r} is shorthand for two modalities and this data set has {len(modalities)} "
            f"({', '.join(modalities)}): give a mapping like "
            f"{{{modalities[0]}: 2, {'+'.join(modalities)}: 3}}"
        )
    parts = value.split(":")
    if len(parts) != 3 or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise ConfigError(f"ownership={value!r}: expected three whole numbers with colons, as in {example}")
    first, second = modalities
    kinds = (frozenset({first}), frozenset({second}), frozenset({first, second}))
    return {kind: int(part) for kind, part in zip(kinds, parts, strict=True)}


def _mapping(value: Mapping[object, object], modalities: Sequence[str]) -> dict[frozenset[str], int]:
    counts: dict[frozenset[str], int] = {}
    for key, count in value.items():
        names = [name.strip() for name in str(key).split("+")]
        unknown = [name for name in names if name not in modalities]
        if unknown:
            raise ConfigError(
                f"ownership names the modality {unknown[0]!r} in {key!r}: this data set has {', '.join(modalities)}"
            )
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"ownership[{key!r}]={count!r}: expected a whole number of sites, 0 or more")
        kind = frozenset(names)
        if len(kind) != len(names) or kind in counts:
            raise ConfigError(f"ownership names {key!r} twice: add the numbers up under one key")
        counts[kind] = count
    return counts


def _spread(counts: Mapping[frozenset[str], int]) -> list[frozenset[str]]:
    """Each kind's sites at even distances; ties in the order in which the kinds are named."""
    places = [
        ((i + 0.5) / count, order, kind) for order, (kind, count) in enumerate(counts.items()) for i in range(count)
    ]
    return [kind for _, _, kind in sorted(places, key=lambda place: place[:2])]
