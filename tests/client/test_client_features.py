"""Features of a frozen network in a site's home: computed once for the life of the data, private, and never stale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from example_policy import STRICT as POLICY
from torch import nn

from secure_fed.client.features import NAME, features_kept
from secure_fed.client.home import Home
from secure_fed.data.images import LazyImages
from secure_fed.errors import ConfigError
from secure_fed.models import frozen
from secure_fed.models.frozen import FrozenBackbone
from secure_fed.models.prepared import PreparedCache


class Counting:
    """A backbone, and how many records passed it."""

    def __init__(self, name="a network/sha", seed=0):
        self.passed = 0
        network = nn.Linear(4, 8, bias=False)
        nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(seed))

        def pooled(raw):
            self.passed += 1
            return network(torch.from_numpy(np.asarray(raw)).flatten(start_dim=1))

        self.features = FrozenBackbone(network, pooled, 8, name, ()).features


@pytest.fixture
def home(tmp_path):
    return Home.create(tmp_path / "site01", POLICY)


@pytest.fixture
def restart(monkeypatch):
    """A new process remembers nothing that is not in the home."""

    def forget():
        monkeypatch.setattr(frozen, "_PREPARED", PreparedCache())

    forget()
    return forget


RECORDS = np.random.default_rng(0).random((5, 4), dtype=np.float32)


def test_a_process_that_is_started_anew_computes_only_what_the_home_does_not_hold(home, restart):
    first = Counting()
    with features_kept(home):
        before = first.features(RECORDS[:4])
    assert first.passed == 4
    restart()
    second = Counting()
    with features_kept(home):
        after = second.features(RECORDS)
    assert second.passed == 1
    assert torch.equal(after[:4], before)
    restart()
    third = Counting()
    with features_kept(home):
        third.features(RECORDS[::-1])
    assert third.passed == 0


@pytest.mark.parametrize("changed", ["the record", "the network"])
def test_features_of_another_record_or_network_are_never_taken(home, restart, changed):
    with features_kept(home):
        before = Counting().features(RECORDS)
    restart()
    other = Counting("a network/other sha", seed=1) if changed == "the network" else Counting()
    records = RECORDS if changed == "the network" else RECORDS + np.float32(1e-3)
    with features_kept(home):
        assert not torch.equal(other.features(records), before)
    assert other.passed == 5


def test_a_record_that_is_taken_out_of_the_data_leaves_no_features(home, restart):
    with features_kept(home):
        Counting().features(RECORDS)
    restart()
    with features_kept(home):
        Counting().features(RECORDS[1:])
    assert len(home.get_tensors(NAME)[1]) == len(RECORDS) - 1
    with features_kept(home):
        pass  # a model without a frozen network asks for none, and says nothing about the data
    assert len(home.get_tensors(NAME)[1]) == len(RECORDS) - 1


def test_they_lie_encrypted_in_the_private_folder_and_the_file_is_the_owners_alone(home, restart):
    with features_kept(home):
        features = Counting().features(RECORDS)
    path = home.private / f"{NAME}.bin"
    assert path.stat().st_mode & 0o777 == 0o600
    assert home.private.stat().st_mode & 0o777 == 0o700
    assert features[0].numpy().tobytes() not in path.read_bytes()
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigError, match="was changed"), features_kept(home):
        pass


def test_a_home_without_frozen_networks_keeps_no_such_file_and_a_failure_keeps_nothing_half(home, restart):
    with features_kept(home):
        pass

    def fails():
        with features_kept(home):
            Counting().features(RECORDS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not (home.private / f"{NAME}.bin").exists()


def test_what_is_not_asked_for_any_more_is_dropped_when_something_new_is_kept(home, restart):
    with features_kept(home):
        Counting().features(RECORDS[:3])
    restart()
    with features_kept(home):
        Counting().features(RECORDS[2:])
    assert len(home.get_tensors(NAME)[1]) == 3


def test_films_in_files_are_read_for_the_network_and_not_again(home, restart, tmp_path):
    from PIL import Image

    files = []
    for i in range(3):
        files.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.full((2, 2), 40 * i, dtype=np.uint8)).save(files[-1])
    films = LazyImages([*files, "", ""], size=2)
    first = Counting()
    with features_kept(home):
        features = first.features(films)
    assert first.passed == 4  # the blank rows are alike
    assert torch.equal(features, Counting().features(np.asarray(films)))
    restart()
    second = Counting()
    with features_kept(home):
        assert torch.equal(second.features(films), features)
    assert second.passed == 0
