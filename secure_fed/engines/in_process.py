"""A Flower Grid that calls the ClientApp directly, in this process: for runs, sweeps and tests.

Messages are Flower's own; only the trip over Ray or a network is missing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run

from secure_fed.engines.task_identity import take_identity

_CLIENT_APP_RAISED = 1


class InProcessGrid(Grid):
    """Runs a message through the ClientApp when its reply is pulled, one at a time: one reply is held at a time."""

    def __init__(self, client_app: ClientApp, nodes: int, run_id: int) -> None:
        self._client_app = client_app
        self._run = Run.create_empty(run_id)
        self._waiting: dict[str, Message] = {}
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(1, nodes + 1)
        }

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message, as Flower's constructor makes it."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes: 1 to n."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages for their destinations' ClientApps."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid4())
            ids.append(message.metadata.message_id)
            self._waiting[message.metadata.message_id] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Yield the replies to these messages; each is handed out once, and made when it is asked for."""
        for identifier in message_ids:
            if identifier in self._waiting:
                yield self._answer(self._waiting.pop(identifier))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull in one."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        try:
            return self._client_app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:  # noqa: BLE001 - as SuperNodes do: a ClientApp that raises is an Error reply
            return Message(Error(_CLIENT_APP_RAISED, type(error).__name__), reply_to=message)


def run_in_process(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run a ServerApp against a ClientApp for `nodes` nodes; what the ServerApp raises is raised here."""
    run_id = secrets.randbits(63)
    take_identity(run_id)
    context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config={})
    server_app(InProcessGrid(client_app, nodes, run_id), context)
