"""The transport over a Flower Grid: who is waited for, how long, and what becomes of late or broken answers."""

from __future__ import annotations

import pytest
from flwr.app import Error, Message, RecordDict

from secure_fed.engines import transport
from secure_fed.engines.messages import from_record, to_record
from secure_fed.engines.task_identity import ensure_identity
from secure_fed.engines.transport import GridTransport
from secure_fed.errors import RunAborted
from secure_fed.federation.wire import Parcel


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class SlowGrid:
    """Node i stands for site0i and answers after `delays[i]` seconds; None is never, an Exception a Flower error."""

    def __init__(self, clock: Clock, delays: dict[int, float | Exception | None]) -> None:
        self.clock, self.delays = clock, delays
        self.due: dict[str, tuple[float | Exception | None, Message]] = {}
        self.ttls: list[float] = []

    def get_node_ids(self) -> list[int]:
        return list(self.delays)

    def push_messages(self, messages: list[Message]) -> list[str]:
        ids = []
        for message in messages:
            name = f"message{len(self.due)}"
            message.metadata.__dict__["_message_id"] = name
            hello = message.metadata.message_type == "query.hello"
            delay = 0.0 if hello else self.delays[message.metadata.dst_node_id]
            self.due[name] = (
                delay if delay is None or isinstance(delay, Exception) else self.clock.now + delay,
                message,
            )
            self.ttls.append(message.metadata.ttl)
            ids.append(name)
        return ids

    def pull_messages(self, ids: list[str]) -> list[Message]:
        replies = []
        for name in ids:
            due, message = self.due[name]
            if isinstance(due, Exception):
                replies.append(Message(Error(0, "x"), reply_to=message))
            elif due is not None and due <= self.clock.now:
                node = message.metadata.dst_node_id
                asked = from_record(message.content)
                body = f"site0{node}".encode() if asked.action == "hello" else b"answer"
                replies.append(Message(to_record(Parcel(body=body)), reply_to=message))
        return replies


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(transport, "time", clock)
    ensure_identity()
    return clock


def exchange(clock: Clock, delays: dict[int, float | Exception | None], optional: set[str], timeout: float = 60.0):
    grid = SlowGrid(clock, delays)
    reached = GridTransport(grid, [f"site0{node}" for node in delays], timeout)
    began = clock.now
    parcels = {f"site0{node}": Parcel("confirm", f"site0{node}") for node in delays}
    answers = dict(reached.exchange(parcels, optional))
    assert set(grid.ttls) == {timeout}, "every message dies with the stage that asked"
    return set(answers), clock.now - began


def test_everybody_is_waited_for_up_to_the_timeout(clock) -> None:
    assert exchange(clock, {1: 0.5, 2: 3.0}, set())[0] == {"site01", "site02"}
    answered, took = exchange(clock, {1: 0.5, 2: None}, set())
    assert answered == {"site01"}
    assert took == pytest.approx(60.0, abs=0.1)


def test_who_is_optional_gets_as_long_as_the_others_took_and_a_second_at_least(clock) -> None:
    answered, took = exchange(clock, {1: 4.0, 2: 7.0, 3: None}, {"site02", "site03"})
    assert answered == {"site01", "site02"}
    assert took == pytest.approx(8.0, abs=0.2)
    answered, took = exchange(clock, {1: 0.0, 2: 0.9, 3: None}, {"site02", "site03"})
    assert answered == {"site01", "site02"}
    assert took == pytest.approx(1.0, abs=0.1)


def test_an_error_of_flowers_is_an_absent_answer_and_ends_the_wait_for_it(clock) -> None:
    answered, took = exchange(clock, {1: 0.0, 2: RuntimeError()}, set())
    assert answered == {"site01"}
    assert took < 0.1


def test_a_message_of_another_shape_is_an_answer_with_a_code(clock) -> None:
    assert from_record(RecordDict()).code == "malformed_message"


def test_a_run_whose_nodes_do_not_come_stops_before_anything_is_charged(clock) -> None:
    with pytest.raises(RunAborted, match=r"site09 within 5 s; nothing was charged"):
        GridTransport(SlowGrid(clock, {1: 0.0}), ["site01", "site09"], 5.0)
