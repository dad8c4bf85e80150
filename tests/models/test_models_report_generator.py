"""The report generator: the paper's equations, one token at a time or all at once, and what it may write."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from secure_fed.data.report_tokens import BEGIN, END, PAD, SPECIAL, UNKNOWN, vocabulary_size
from secure_fed.models.report_generator import (
    GeneratorConfig,
    MemoryDrivenNorm,
    RelationalMemory,
    ReportGenerator,
    _Writing,
    positions,
)

FEATURES = 6
TINY = {"d_model": 8, "heads": 2, "layers": 2, "feed_forward": 12, "max_tokens": 9, "visual_tokens": 2}


def awake(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Away from zero, so that every parameter matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def make_generator(**changes: object) -> ReportGenerator:
    torch.manual_seed(0)
    generator = awake(ReportGenerator(GeneratorConfig(**{**TINY, **changes}), FEATURES, "text"))
    assert isinstance(generator, ReportGenerator)
    return generator


def sources(n: int = 5) -> Tensor:
    return torch.randn(n, FEATURES, generator=torch.Generator().manual_seed(1))


def sequences(n: int = 5, length: int = 9) -> Tensor:
    return torch.randint(SPECIAL, vocabulary_size(), (n, length), generator=torch.Generator().manual_seed(2))


# -- the equations of arXiv 2010.16056 --------------------------------------------------------------------------


def test_the_memory_takes_the_papers_step():
    torch.manual_seed(3)
    memory = awake(RelationalMemory(slots=3, width=4, heads=1))
    assert isinstance(memory, RelationalMemory)
    m, y = torch.randn(3, 4), torch.randn(4)
    both = torch.cat([m, y[None]])
    attention = memory.attention

    def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
        return x @ layer.weight.T + (0.0 if layer.bias is None else layer.bias)

    q, k, v = linear(attention.query, m), linear(attention.key, both), linear(attention.value, both)
    z = linear(attention.out, torch.softmax(q @ k.T / math.sqrt(4), dim=1) @ v)  # eq. 6
    hidden = torch.relu(linear(memory.mlp[0], z + m))
    proposed = linear(memory.mlp[2], hidden) + z + m  # eq. 7
    gates = linear(memory.token_gates, y) + linear(memory.memory_gates, torch.tanh(m))  # eq. 8, 9
    forget, admit = torch.sigmoid(gates[:, :4]), torch.sigmoid(gates[:, 4:])
    expected = forget * m + admit * torch.tanh(proposed)  # eq. 10
    found = memory.step(m[None], y[None, None], memory.token_gates(y[None, None]))[0]
    torch.testing.assert_close(found, expected)


def test_the_norm_adds_what_the_memory_says_to_scale_and_shift():
    torch.manual_seed(3)
    norm = awake(MemoryDrivenNorm(width=4, memory=6))
    assert isinstance(norm, MemoryDrivenNorm)
    x, m = torch.randn(2, 5, 4), torch.randn(2, 5, 6)
    gamma, beta = norm.norm.weight + norm.scale(m), norm.norm.bias + norm.shift(m)  # eq. 12, 14
    mean, variance = x.mean(dim=-1, keepdim=True), x.var(dim=-1, keepdim=True, unbiased=False)
    torch.testing.assert_close(norm(x, m), gamma * (x - mean) / torch.sqrt(variance + 1e-5) + beta)  # eq. 15


def test_an_untrained_norm_is_a_plain_one_whatever_the_memory_says():
    norm = MemoryDrivenNorm(width=4, memory=6)
    x = torch.randn(2, 5, 4)
    torch.testing.assert_close(norm(x, torch.randn(2, 5, 6)), F.layer_norm(x, (4,)))


def test_positions_are_sines_and_cosines():
    found = positions(3, 2, 4)
    expected = [[f(p * w) for w in (1.0, 0.01) for f in (math.sin, math.cos)] for p in (3, 4)]
    torch.testing.assert_close(found, torch.tensor(expected))


# -- one token at a time ----------------------------------------------------------------------------------------


def test_writing_token_by_token_gives_the_probabilities_that_reading_the_whole_gives():
    generator, source, tokens = make_generator(), sources(), sequences()
    with torch.no_grad():
        whole = generator(source, tokens)
        whole[..., [PAD, BEGIN, UNKNOWN]] = -torch.inf
        writing = _Writing(generator, generator.encoder(generator.look(source)), beam=1, full_length=False)
        rows = torch.arange(len(source))
        for t in range(tokens.shape[1]):
            found = writing.advance(tokens[rows, t])
            torch.testing.assert_close(found, whole[rows, t].log_softmax(dim=1), rtol=1e-4, atol=1e-4)
            kept = torch.tensor([1, 0, 2, 2, 4])  # as a beam does: reordered, repeated, dropped
            writing.keep(kept)
            rows = rows[kept]


def test_no_token_sees_those_after_it():
    generator, source, tokens = make_generator(), sources(), sequences()
    changed = tokens.clone()
    changed[:, 5:] = SPECIAL
    with torch.no_grad():
        before, after = generator(source, tokens), generator(source, changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_what_is_written_depends_on_the_film():
    generator, tokens = make_generator(), sequences()
    with torch.no_grad():
        assert not torch.allclose(generator(sources(), tokens), generator(-sources(), tokens), atol=0.1)


def test_greedy_writing_takes_the_most_probable_token_each_time():
    generator, source = make_generator(beam=1), sources()
    written = generator.generate(source)
    before = F.pad(written[:, :-1], (1, 0), value=BEGIN)
    with torch.no_grad():
        logits = generator(source, before)
    logits[..., [PAD, BEGIN, UNKNOWN]] = -torch.inf
    open_ = written != PAD
    assert torch.equal(logits.argmax(dim=2)[open_], written[open_])


@pytest.mark.parametrize("beam", [1, 3])
def test_a_report_is_the_same_alone_and_in_company_and_every_time(beam):
    generator, source = make_generator(beam=beam), sources()
    together = generator.generate(source)
    assert torch.equal(together, generator.generate(source))
    assert torch.equal(together, torch.cat([generator.generate(row[None]) for row in source]))


def test_neither_padding_nor_unknown_words_are_written_and_padding_follows_the_end():
    generator = make_generator()
    with torch.no_grad():
        generator.out.bias[[PAD, BEGIN, UNKNOWN]] = 50.0
        generator.out.bias[END] = 1.0
    written = generator.generate(sources(20))
    lengths = [row.index(END) if END in row else len(row) for row in written.tolist()]
    assert min(lengths) < max(lengths)
    for row, length in zip(written.tolist(), lengths, strict=True):
        assert all(token >= SPECIAL for token in row[:length])
        assert all(token == PAD for token in row[length + 1 :])


def test_at_full_length_no_report_ends():
    generator = make_generator()
    with torch.no_grad():
        generator.out.bias[END] = 50.0
    assert (generator.generate(sources())[:, 0] == END).all()
    assert (generator.generate(sources(), full_length=True) >= SPECIAL).all()


def test_no_films_make_no_reports_and_a_film_that_is_not_finite_spoils_only_its_own():
    generator, source = make_generator(), sources()
    assert generator.generate(source[:0]).shape == (0, 9)
    healthy = generator.generate(source)
    source[2] = torch.nan
    found = generator.generate(source)
    assert torch.equal(found[[0, 1, 3, 4]], healthy[[0, 1, 3, 4]])


# -- losses and cost --------------------------------------------------------------------------------------------


def test_an_untrained_generator_finds_every_token_equally_likely():
    generator = ReportGenerator(GeneratorConfig(**TINY), FEATURES, "text")
    assert not generator.trained
    reports = generator.prepare(np.array(["no effusion", "", "clear."], dtype=object))
    expected = torch.tensor([3.0, 0.0, 3.0]) * math.log(vocabulary_size())
    torch.testing.assert_close(generator.losses(sources(3), reports), expected)
    with torch.no_grad():
        generator.out.bias[7] = 1e-9
    assert generator.trained


def test_a_loss_is_the_sum_over_tokens_and_padding_counts_nothing():
    generator, source = make_generator(), sources(3)
    reports = generator.prepare(np.array(["no effusion", "possible edema, clear lungs", "clear"], dtype=object))
    with torch.no_grad():
        found = generator.losses(source, reports)
        logits = generator(source, F.pad(reports[:, :-1], (1, 0), value=BEGIN)).log_softmax(dim=2)
    expected = [
        -sum(logits[i, t, token].item() for t, token in enumerate(reports[i].tolist()) if token != PAD)
        for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.tensor(expected))


def test_reports_are_prepared_to_each_generators_own_length():
    texts = np.array(["no effusion"], dtype=object)
    assert [make_generator(max_tokens=n).prepare(texts).shape for n in (4, 7)] == [(1, 4), (1, 7)]


def operations(generator: ReportGenerator) -> int:
    with FlopCounterMode(display=False) as counter:
        generator.generate(sources(1), full_length=True)
    return counter.get_total_flops()


def test_what_a_report_costs_is_counted_and_grows_with_beam_and_length():
    plain = operations(make_generator())
    assert plain > 9 * 3 * 2 * 8 * vocabulary_size()  # the output layer alone
    assert operations(make_generator(max_tokens=18)) > 1.9 * plain
    assert operations(make_generator(beam=1)) < 0.5 * plain


@pytest.mark.parametrize(("sizes", "named"), [({"heads": 3}, "heads=3"), ({"memory_slots": 9}, "memory_slots=9")])
def test_sizes_that_do_not_fit_are_refused_by_name(sizes, named):
    with pytest.raises(ValidationError, match=named):
        GeneratorConfig(**{**TINY, **sizes})


def test_at_the_papers_sizes_it_has_78_million_parameters():
    with torch.device("meta"):
        paper = ReportGenerator(
            GeneratorConfig(visual="resnet101", d_model=512, layers=3, heads=8, feed_forward=512, max_tokens=60),
            FEATURES,
            "text",
        )
    # In millions: ResNet-101 without its last layer 42.5 and 1.0 to project, encoder 4.7, decoder with 18 MLPs of the
    # memory-driven norms 26.8, memory 2.6, and 0.6 for 559 words.
    assert 78e6 < sum(parameter.numel() for parameter in paper.parameters()) < 79e6


def test_a_residual_network_of_its_own_gives_a_token_for_each_patch():
    from secure_fed.models.patches import PatchTokens

    with torch.no_grad():
        tokens = PatchTokens(8)(torch.rand(1, 1, 64, 96))
    assert tokens.shape == (1, 2 * 3, 8)
