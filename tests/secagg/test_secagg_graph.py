"""The k-regular graph: its numbers against brute force and the literature, its shape, and whole rounds over it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from secagg_federation import Federation, bind, make_context, random_vectors, refused

from secure_fed.errors import ConfigError
from secure_fed.secagg import Code, KRegular, Stage, k_regular, keys
from secure_fed.secagg.graph import Graph, hypergeometric_tail, masking_degree, random_graph, stays_connected
from secure_fed.secagg.messages import Release, ShareBundle, ShareDelivery

# Hypergeometric tails


@pytest.mark.parametrize(
    ("population", "marked", "draws"), [(1, 0, 1), (5, 2, 3), (7, 7, 4), (8, 0, 3), (9, 4, 5), (10, 3, 8)]
)
def test_hypergeometric_tail_counts_what_enumeration_counts(population, marked, draws):
    drawn = [sum(item < marked for item in draw) for draw in itertools.combinations(range(population), draws)]
    for least in range(draws + 2):
        expected = Fraction(sum(count >= least for count in drawn), len(drawn))
        assert Fraction(*hypergeometric_tail(population, marked, draws, least)) == expected


def test_hypergeometric_tail_has_its_closed_forms():
    for population, marked, draws in [(50, 7, 3), (999, 50, 52), (1000, 333, 10)]:
        tail = functools.partial(hypergeometric_tail, population, marked, draws)
        unmarked = population - marked
        assert Fraction(*tail(0)) == 1
        assert Fraction(*tail(1)) == 1 - Fraction(comb(unmarked, draws), comb(population, draws))
        assert Fraction(*tail(draws)) == Fraction(comb(marked, draws), comb(population, draws))
        assert Fraction(*tail(draws + 1)) == 0
        mean = sum(Fraction(*tail(least)) for least in range(1, draws + 1))
        assert mean == Fraction(draws * marked, population)


# Degree and threshold


@pytest.mark.parametrize(
    ("members", "corrupt", "dropout", "semi_malicious", "expected"),
    [
        (100, 0.33, 0.33, False, (68, 34)),
        (1000, 0.05, 0.05, False, (30, 17)),
        (1000, 0.05, 0.05, True, (52, 37)),
    ],
)
def test_degree_and_threshold_are_those_of_the_literature(members, corrupt, dropout, semi_malicious, expected):
    """Bell et al. (2020) at sigma = 40, eta = 20."""
    graph = k_regular(members, corrupt, dropout, semi_malicious=semi_malicious)
    assert (graph.degree, graph.threshold) == expected


def tail_at_least(members: int, marked: int, degree: int, least: int) -> Fraction:
    return Fraction(*hypergeometric_tail(members - 1, marked, degree, least))


@pytest.mark.parametrize(
    ("members", "corrupt", "dropped", "semi_malicious"),
    [
        (101, 5, 5, True),
        (150, 23, 10, True),
        (200, 25, 20, True),
        (500, 50, 50, False),
        (1000, 100, 50, True),
        (200, 0, 100, False),  # here it is connectivity that decides
    ],
)
def test_degree_is_the_smallest_that_meets_the_conditions_as_they_are_written(
    members, corrupt, dropped, semi_malicious
):
    graph = k_regular(members, corrupt / members, dropped / members, semi_malicious=semi_malicious)

    def holds(degree: int) -> int:
        """The threshold of a degree that is private, reliable and connected, or 0."""
        lowest = next(
            t for t in range(degree + 2) if tail_at_least(members, corrupt, degree, t) * members < Fraction(1, 2**41)
        )
        threshold = (degree + lowest) // 2 + 1 if semi_malicious else max(2, lowest)
        assert not semi_malicious or 2 * threshold > degree + lowest
        reliable = tail_at_least(members, dropped, degree, degree - threshold + 1) * members < Fraction(1, 2**20)
        pairs = Fraction(members * (members - degree - 1), 2)
        apart = pairs * Fraction(comb(corrupt + dropped, degree), comb(members, degree))
        return threshold if threshold <= degree and reliable and apart < Fraction(1, 2**40) else 0

    assert holds(graph.degree) == graph.threshold
    assert not any(holds(degree) for degree in range(2, graph.degree, 2))
    graph.check(members, corrupt, dropped)


def test_fractions_mean_the_numbers_of_members_that_they_say():
    """0.29 of 100 in floating point is 28.999..., and a third of 300 is 99.999...."""
    assert 0.29 * 100 < 29
    assert k_regular(100, 0.29, 0.1, semi_malicious=False) == k_regular(100, 0.2999, 0.1, semi_malicious=False)
    assert k_regular(300, 1 / 3, 0.1, semi_malicious=False) != k_regular(300, 0.333, 0.1, semi_malicious=False)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: k_regular(100, 0.33, 0.33), "no k-regular graph of 100 members stands 33 corrupt and 33 dropped"),
        (lambda: k_regular(200, -0.1, 0.1), "corrupt_fraction=-0.1"),
        (lambda: k_regular(200, 0.1, 1.0), "dropout_fraction=1.0"),
        (lambda: KRegular(51, 37), "degree=51"),
        (lambda: KRegular(0, 1), "degree=0"),
        (lambda: KRegular(52, 53), "threshold=53"),
        (lambda: KRegular(52, 1), "threshold=1"),
        (lambda: KRegular(52, 15).check(1000, 50, 50), "threshold=15: among 52 neighbours 50 corrupt"),
        (lambda: KRegular(52, 50).check(1000, 50, 50), "50 drop-outs of 1000.*raise min_cohort"),
        (lambda: KRegular(44, 2).check(200, 0, 100), "may fall apart without 0 corrupt and 100 dropped"),
        (lambda: KRegular(1000, 500).check(1000, 50, 50), "no less than the complete graph"),
    ],
)
def test_graph_that_does_not_protect_or_does_not_exist_is_refused_with_the_way_out(call, text):
    with pytest.raises(ConfigError, match=text):
        call()


# Connectivity


def falls_apart(nodes: int, degree: int, removed: tuple[int, ...]) -> bool:
    """By walking the graph that is left."""
    graph = Graph(tuple(str(node) for node in range(nodes)), degree)
    left = {str(node) for node in range(nodes)} - {str(node) for node in removed}
    if not left:
        return False
    seen, todo = set(), [min(left)]
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += graph.neighbours(node) & left
    return seen != left


@pytest.mark.parametrize(("nodes", "degree"), [(7, 2), (8, 2), (8, 4), (10, 4), (11, 4), (12, 6), (13, 6)])
def test_connectivity_bound_is_never_below_the_exact_probability_and_exact_where_it_is_zero(nodes, degree):
    for removed in range(nodes - 1):
        cases = list(itertools.combinations(range(nodes), removed))
        exact = Fraction(sum(falls_apart(nodes, degree, case) for case in cases), len(cases))
        assert (exact == 0) == (removed < degree or removed > nodes - 2)
        for sigma in range(12):
            assert not stays_connected(nodes, removed, degree, sigma) or exact < Fraction(1, 2**sigma)
        if removed < degree:
            assert stays_connected(nodes, removed, degree, 10_000)


def test_owners_of_a_component_mask_against_more_where_the_corrupt_are_many_among_them():
    """With 50 corrupt of 1000, all of them owners of one component: few owners need the complete graph."""
    assert masking_degree(60, 50, 8, 52) == 59
    assert masking_degree(150, 50, 50, 52) == 64
    assert masking_degree(1000, 50, 50, 52) == 52
    for owners in range(54, 1001):
        dropped = min(50, owners - 52)
        degree = masking_degree(owners, 50, dropped, 52)
        assert degree == owners - 1 or stays_connected(owners, 50 + dropped, degree)


# The graph itself


NAMES = tuple(f"site{number:03d}" for number in range(40))


@pytest.mark.parametrize("degree", [2, 8, 20, 38])
def test_every_member_has_degree_neighbours_and_is_a_neighbour_of_them(degree):
    graph = random_graph(bytes(32), ("shares",), NAMES, degree)
    for name in NAMES:
        neighbours = graph.neighbours(name)
        assert len(neighbours) == degree
        assert name not in neighbours
        assert all(name in graph.neighbours(other) for other in neighbours)


@pytest.mark.parametrize("degree", [39, 40, 100])
def test_graph_of_as_many_neighbours_as_there_are_others_is_complete(degree):
    graph = random_graph(bytes(32), ("shares",), NAMES, degree)
    assert all(graph.neighbours(name) == set(NAMES) - {name} for name in NAMES)


def test_graph_depends_on_seed_and_purpose_and_not_on_the_order_of_the_names():
    def edges(seed: bytes, purpose: tuple[str, ...], names: tuple[str, ...]) -> frozenset[frozenset[str]]:
        graph = random_graph(seed, purpose, names, 8)
        return frozenset(frozenset((one, other)) for one in names for other in graph.neighbours(one))

    base = edges(bytes(32), ("shares",), NAMES)
    assert base == edges(bytes(32), ("shares",), NAMES[::-1])
    others = [(b"\x01" * 32, ("shares",)), (bytes(32), ("masks", "shares")), (bytes(32), ("masks", "fusion"))]
    assert len({base, *(edges(seed, purpose, NAMES) for seed, purpose in others)}) == 4


def test_every_pair_of_members_is_joined_as_often_as_chance_says():
    """Over 1000 seeds each pair is joined with probability k / (n - 1): six standard deviations, 780 pairs."""
    seeds, degree = 1000, 8
    counts = dict.fromkeys(itertools.combinations(NAMES, 2), 0)
    for seed in range(seeds):
        graph = random_graph.__wrapped__(seed.to_bytes(32, "big"), ("shares",), NAMES, degree)
        for one in NAMES:
            for other in graph.neighbours(one):
                if one < other:
                    counts[one, other] += 1
    chance = degree / (len(NAMES) - 1)
    deviation = (seeds * chance * (1 - chance)) ** 0.5
    assert all(abs(count - seeds * chance) < 6 * deviation for count in counts.values())


# Parameters


def large(**changes):
    graph = k_regular(101, 5 / 101, 5 / 101)
    arguments = {
        "count": 101,
        "corrupt": 5,
        "min_cohort": 96,
        "graph": graph,
        "components": {"fusion": (4, set(range(101)))},
    }
    return make_context(**{**arguments, **changes})


def test_graph_is_named_in_the_cautions_and_bound_into_the_session():
    context = large()
    assert "k-regular graph: semi-malicious server only" in context.params.cautions()
    assert context.params.share_threshold == context.params.graph.threshold
    wider = KRegular(context.params.graph.degree + 2, context.params.graph.threshold + 1)
    complete, other = large(graph=None), large(graph=wider)
    assert complete.params.cautions() == ()
    assert complete.params.share_threshold == complete.params.threshold
    assert len({context.kid, complete.kid, other.kid}) == 3


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"min_cohort": 60}, "raise min_cohort"),
        ({"corrupt": 30}, "threshold=.*corrupt"),
        ({"graph": KRegular(4, 3)}, "secagg graph"),
        ({"graph": KRegular(100, 60)}, "no less than the complete graph"),
        (
            {"count": 100, "components": {"fusion": (4, set(range(100)))}, "graph": KRegular(68, 34)},
            "up to 100 the complete graph is stronger",
        ),
    ],
)
def test_graph_that_does_not_fit_the_cohort_is_refused_at_setup(changes, text):
    with pytest.raises(ConfigError, match=text):
        large(**changes)


def test_a_graph_of_its_own_keeps_every_owner_of_a_component_among_other_owners():
    """Of the share graph, the owners alone could leave one without a neighbour: only its self-mask would be left."""
    context = large(components={"fusion": (4, set(range(101))), "rare": (4, set(range(8)))})
    rare = context.schema.by_name["rare"]
    isolated = 0
    for seed in range(200):
        u1_hash = seed.to_bytes(32, "big")
        shares, masks = context.share_graph(u1_hash), context.mask_graph(u1_hash, rare)
        isolated += any(not shares.neighbours(owner) & rare.owners for owner in rare.owners)
        assert all(masks.neighbours(owner) == rare.owners - {owner} for owner in rare.owners)
    assert isolated > 0


def test_component_whose_owners_may_mostly_be_corrupt_masks_against_more_owners_than_the_degree():
    """1000 members, 50 of them corrupt, all of whom may be among the 60 owners of one component."""
    graph = KRegular(52, 37)
    layout = {"fusion": (4, set(range(1000))), "rare": (4, set(range(60)))}
    context = make_context(1000, 50, layout, min_cohort=950, graph=graph)
    degrees = {spec.name: context.mask_graph(bytes(32), spec).degree for spec in context.schema.components}
    assert degrees == {"fusion": 52, "rare": 59}


def test_graphs_of_a_session_have_orders_of_their_own():
    everybody = set(range(101))
    context = large(components={"fusion": (4, everybody), "text": (4, everybody)})
    for seed in (bytes(32), b"\x01" * 32):
        graphs = [context.share_graph(seed), *(context.mask_graph(seed, spec) for spec in context.schema.components)]
        assert len({graph.order for graph in graphs}) == 3


# Whole rounds


@pytest.fixture
def large_federation(monkeypatch) -> Federation:
    """101 members, one of whose components has few owners. Signatures are verified once, whoever asks again."""
    monkeypatch.setattr(keys, "verify", functools.cache(keys.verify))
    monkeypatch.setattr(keys, "is_usable", functools.cache(keys.is_usable))
    layout = {"fusion": (5, set(range(101))), "middle": (3, set(range(0, 80, 2))), "rare": (2, set(range(8)))}
    context = large(components=layout)
    return Federation(context, random_vectors(context, 5))


def test_large_cohort_gives_the_plaintext_sum_under_dropouts_of_every_stage(large_federation):
    federation, degree = large_federation, large_federation.context.params.graph.degree
    drops = {
        Stage.ADVERTISE: {"site11"},
        Stage.SHARE: {"site01", "site50"},
        Stage.MASK: {"site03", "site60"},
        Stage.CONFIRM: {"site05", "site70"},
        Stage.UNMASK: {"site07", "site100"},
    }
    federation.play(drops=drops)
    silent = set().union(*(drops[stage] for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK)))
    for spec in federation.context.schema.components:
        contributors = tuple(sorted(spec.owners - silent))
        opened = federation.server.sums()[spec.name]
        if len(contributors) < 7:  # C + 2
            assert opened is None
        else:
            assert opened.contributors == contributors
            np.testing.assert_array_equal(opened.values, federation.plain_sum(spec.name, contributors))
    bundles = [ShareBundle.from_bytes(reply.message) for stage, _, reply in federation.received if stage is Stage.SHARE]
    assert all(degree - 1 <= len(bundle.sealed) <= degree for bundle in bundles)
    releases = [Release.from_bytes(reply.message) for stage, _, reply in federation.received if stage is Stage.UNMASK]
    for release in releases:
        assert release.released.keys() <= federation.context.holders(federation.server._u1_hash, release.sender)
    transcript = federation.server.transcript()
    federation.context.check_transcript(transcript, transcript.model_hash)


def test_member_of_a_large_cohort_takes_shares_of_its_neighbours_only(large_federation):
    federation = large_federation
    federation.play(until=Stage.MASK)
    bind(federation)
    delivery = ShareDelivery.from_bytes(federation.server.request("site01"))
    graph = federation.context.share_graph(federation.server._u1_hash)
    assert delivery.sealed.keys() == graph.neighbours("site01")
    assert delivery.u2 == federation.context.members
    stranger = min(set(federation.context.members) - graph.neighbours("site01") - {"site01"})
    more = {**delivery.sealed, stranger: next(iter(delivery.sealed.values()))}
    with refused(Code.WRONG_SHARES):
        federation.answer("site01", Stage.MASK, dataclasses.replace(delivery, sealed=more).to_bytes())


def test_too_few_holders_around_one_dealer_abort_before_anything_is_opened(large_federation):
    """t members in all may confirm while one dealer's neighbours are silent: the attempt is repeated, not burned."""
    federation = large_federation
    federation.play(until=Stage.CONFIRM)
    holders = federation.context.holders(federation.server._u1_hash, "site01")
    needed = federation.context.params.share_threshold
    silent = set(sorted(holders)[: len(holders) - needed + 1])
    federation.collect(absent=silent)
    assert len(federation.server.answered) >= federation.context.params.threshold
    with refused(Code.BELOW_THRESHOLD):
        federation.server.advance()
    assert not federation.server.released
