"""The ServerApp and the ClientApp on Flower's Message API, the same under every engine.

A node opens its site's home for every message and keeps nothing in Flower's context.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from secure_fed.client.home import Home
from secure_fed.client.site import SiteClient
from secure_fed.config import load_config
from secure_fed.data import Records
from secure_fed.engines.messages import MESSAGE_TYPES, from_record, to_record
from secure_fed.engines.simulated_sites import simulate
from secure_fed.federation.config import RunConfig
from secure_fed.federation.wire import Parcel
from secure_fed.identity import Roster

FolderOf = Callable[[Context], Path]
"""Where a run's folder lies, told from a node's context."""


def make_client_app(folder_of: FolderOf) -> ClientApp:
    """The ClientApp: every message type goes to the site that the node stands for."""
    app = ClientApp()
    for action, message_type in MESSAGE_TYPES.items():
        category, name = message_type.split(".")
        register = {"query": app.query, "train": app.train}[category]
        register(name)(_handler(action, folder_of))
    return app


def make_server_app(main: Callable[[Grid, Context], None]) -> ServerApp:
    """The ServerApp: `main` runs the whole schedule over the grid."""
    app = ServerApp()
    app.main()(main)
    return app


def _handler(action: str, folder_of: FolderOf) -> Callable[[Message, Context], Message]:
    def handle(message: Message, context: Context) -> Message:
        # One thread a site in every engine: sums of floats depend on how they are split.
        torch.set_num_threads(1)
        try:
            answer = _answer(action, from_record(message.content), folder_of(context), context)
        except Exception:  # noqa: BLE001 - fail closed: an exception's text could name a path or a patient
            answer = Parcel(code="site_unavailable")
        return Message(to_record(answer), reply_to=message)

    return handle


def _answer(action: str, parcel: Parcel, folder: Path, context: Context) -> Parcel:
    hosted = hosted_sites(folder, int(context.node_config["partition-id"]), int(context.node_config["num-partitions"]))
    if action == "hello":
        return Parcel(body="\n".join(hosted).encode())
    if parcel.site not in hosted:
        return Parcel(code="unknown_site")
    if parcel.action != action:
        return Parcel(code="unknown_action")
    return site_client(folder, parcel.site).handle(parcel)


def hosted_sites(folder: Path, partition: int, partitions: int) -> tuple[str, ...]:
    """The sites that node `partition` of `partitions` stands for; one each where there are nodes enough."""
    return tuple(sorted(_public_facts(folder)[1].members)[partition::partitions])


@lru_cache(maxsize=16)
def _public_facts(folder: Path) -> tuple[RunConfig, Roster]:
    """Configuration and roster of a run folder; neither changes while it runs, so read once in each process."""
    return load_config(folder), Roster.load(folder / "roster.json")


def forget_folders() -> None:
    """Read folders anew: one's name may have been used before in this process."""
    _public_facts.cache_clear()
    site_client.cache_clear()


@lru_cache(maxsize=256)
def site_client(folder: Path, name: str) -> SiteClient:
    """The simulated site `name` of a run folder; made once in each process."""
    config, _ = _public_facts(folder)

    def records() -> Records:
        return simulate(config).records[name]

    return SiteClient(Home(folder / "sites" / name), config, folder / "roster.json", records)
