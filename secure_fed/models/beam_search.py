"""Beam search over many records at once: the most probable sequence among those that a beam keeps.

Deterministic, record by record; it knows neither words nor the model that gives the probabilities.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Decoding(Protocol):
    """A model in the midst of writing R sequences, token by token; it keeps what it needs of those before."""

    def advance(self, tokens: Tensor) -> Tensor:
        """Append `tokens` (int64 [R]) and give the log probabilities [R, V] of what follows."""

    def keep(self, rows: Tensor) -> None:
        """Go on with the sequences at `rows` (int64 [R']), which may repeat."""


def beam_search(
    decoding: Decoding, records: int, beam: int, max_tokens: int, *, begin: int, end: int, pad: int
) -> Tensor:
    """The best sequence of each record, int64 [records, max_tokens], with `pad` after `end`.

    `decoding` holds records * beam sequences, those of one record beside each other. The best has the highest sum
    of log probabilities (no bonus for length); a sequence stops at `end` or at `max_tokens`. Where the beam is
    wider than there are prefixes this is exhaustive search, at 1 it is greedy.
    """
    written = torch.full((records, max_tokens), pad)
    index = torch.arange(records)  # of the records that are still being written
    texts = torch.full((records, beam, max_tokens), pad)
    ended = torch.zeros(records, beam, dtype=torch.bool)
    scores = torch.full((records, beam), -torch.inf)
    scores[:, 0] = 0.0  # all beams begin alike: one of them stands for all
    last = torch.full((records * beam,), begin)
    for step in range(max_tokens):
        following = decoding.advance(last).view(len(index), beam, -1)
        following[ended] = -torch.inf
        following[..., pad] = torch.where(ended, 0.0, -torch.inf)
        totals = scores.unsqueeze(2) + following
        scores, best = totals.flatten(start_dim=1).topk(beam, dim=1)
        parents, tokens = best // totals.shape[2], best % totals.shape[2]
        texts = texts.gather(1, parents.unsqueeze(2).expand_as(texts))
        texts[:, :, step] = tokens
        ended = ended.gather(1, parents) | (tokens == end)
        # No log probability is above 0: what has ended and leads can no longer be overtaken.
        open_ = ~ended[:, 0]
        written[index[~open_]] = texts[~open_, 0]
        rows = torch.arange(len(index)).unsqueeze(1) * beam + parents
        index, texts, ended, scores = index[open_], texts[open_], ended[open_], scores[open_]
        if not len(index):
            break
        decoding.keep(rows[open_].flatten())
        last = tokens[open_].flatten()
    written[index] = texts[:, 0]
    return written
