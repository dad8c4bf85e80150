"""Beam search against exhaustive search, on a model that is a table of random probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from secure_fed.models.beam_search import beam_search

PAD, BEGIN, END = 0, 1, 2
WORDS, LENGTH = (END, 3, 4), 4


class Table:
    """Log probabilities that depend on the record and on the whole sequence before, drawn from its hash."""

    def __init__(self, names: list[int], beam: int) -> None:
        self.prefixes: list[tuple[int, ...]] = [(name,) for name in names for _ in range(beam)]

    def advance(self, tokens: Tensor) -> Tensor:
        self.prefixes = [(*prefix, token) for prefix, token in zip(self.prefixes, tokens.tolist(), strict=True)]
        return torch.stack([following(prefix) for prefix in self.prefixes])

    def keep(self, rows: Tensor) -> None:
        self.prefixes = [self.prefixes[row] for row in rows.tolist()]


def following(prefix: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum((i + 7) * 31**i * token for i, token in enumerate(prefix)) + 1)
    logits = torch.full((5,), -torch.inf)
    logits[list(WORDS)] = 2 * torch.randn(len(WORDS), generator=generator)
    return torch.log_softmax(logits, dim=0)


def score(name: int, sequence: tuple[int, ...]) -> float:
    prefix, total = (name, BEGIN), 0.0
    for token in sequence:
        total += following(prefix)[token].item()
        prefix = (*prefix, token)
    return total


def exhaustive(name: int) -> tuple[int, ...]:
    ended = [
        (*words, END) for length in range(LENGTH) for words in itertools.product((3, 4), repeat=length)
    ]  # fmt: skip
    return max([*ended, *itertools.product((3, 4), repeat=LENGTH)], key=lambda sequence: score(name, sequence))


def greedy(name: int) -> tuple[int, ...]:
    found: tuple[int, ...] = ()
    while len(found) < LENGTH and END not in found:
        found = (*found, int(following((name, BEGIN, *found)).argmax()))
    return found


def search(names: list[int], beam: int) -> list[tuple[int, ...]]:
    written = beam_search(Table(names, beam), len(names), beam, LENGTH, begin=BEGIN, end=END, pad=PAD)
    assert written.shape == (len(names), LENGTH)
    found = []
    for row in written.tolist():
        stop = row.index(END) + 1 if END in row else LENGTH
        assert row[stop:] == [PAD] * (LENGTH - stop)
        found.append(tuple(row[:stop]))
    return found


NAMES = list(range(40))


def test_a_beam_as_wide_as_all_prefixes_finds_what_exhaustive_search_finds():
    assert search(NAMES, 31) == [exhaustive(name) for name in NAMES]


def test_a_beam_of_one_is_greedy_which_is_not_always_the_best():
    found = search(NAMES, 1)
    assert found == [greedy(name) for name in NAMES]
    assert found != [exhaustive(name) for name in NAMES]


@pytest.mark.parametrize("beam", [1, 3])
def test_a_records_sequence_does_not_depend_on_the_company_it_is_in(beam):
    assert search(NAMES, beam) == [search([name], beam)[0] for name in NAMES]


def by_hand(name: int, beam: int) -> tuple[int, ...]:
    """The same search over lists: what has ended stays as it is and competes with what goes on."""
    kept: list[tuple[int, ...]] = [()]
    for _ in range(LENGTH):
        grown = [(*sequence, token) for sequence in kept if END not in sequence for token in WORDS]
        candidates = [*grown, *(sequence for sequence in kept if END in sequence)]
        kept = sorted(candidates, key=lambda sequence: -score(name, sequence))[:beam]
    return kept[0]


@pytest.mark.parametrize("beam", [2, 3])
def test_ended_sequences_compete_as_they_are_with_those_that_go_on(beam):
    assert search(NAMES, beam) == [by_hand(name, beam) for name in NAMES]


def test_a_beam_of_three_lies_between_greedy_and_exhaustive_search():
    totals = [sum(score(n, s) for n, s in zip(NAMES, search(NAMES, beam), strict=True)) for beam in (1, 3, 31)]
    assert totals[0] < totals[1] <= totals[2]


def test_only_padding_follows_an_end_however_sure_the_model_is_of_a_word():
    word, end, begin, pad = range(4)

    class Sure(Table):
        def advance(self, tokens: Tensor) -> Tensor:
            self.prefixes = [(*prefix, token) for prefix, token in zip(self.prefixes, tokens.tolist(), strict=True)]
            # At first a word is likelier than the end; what goes on from there is less likely than having ended.
            chances = {begin: (0.6, 0.4), word: (0.5, 0.5), end: (1.0, 0.0), pad: (1.0, 0.0)}
            return torch.tensor([[*chances[prefix[-1]], 0.0, 0.0] for prefix in self.prefixes]).log()

    written = beam_search(Sure([0], 2), 1, 2, 3, begin=begin, end=end, pad=pad)
    assert written.tolist() == [[end, pad, pad]]
