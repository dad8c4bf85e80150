"""Features of frozen public networks in a site's home: a process that is started anew need not compute them again.

With real Flower any message may find a new process, and a large network takes minutes over a site's records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from secure_fed.client.home import Home
from secure_fed.models.frozen import remembered

NAME = "features"


@contextmanager
def features_kept(home: Home) -> Iterator[None]:
    """Within the block, frozen networks take features from `home`; what they had to compute is kept there behind it.

    They are as private as the records: encrypted, under `private/`, and never sent. What a block that asked for any did
    not ask for is dropped: a patient who is taken out of the data leaves nothing here. Raises ConfigError where the
    file was changed.
    """
    stored = home.get_tensors(NAME)
    before = {} if stored is None else {key: torch.from_numpy(row) for key, row in stored[1].items()}
    with remembered(before) as asked:
        yield
    if asked and asked.keys() != before.keys():
        home.put_tensors(NAME, {}, {key: row.numpy() for key, row in asked.items()})
