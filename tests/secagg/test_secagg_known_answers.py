"""Known answers of the control plane in plain JSON, made by another implementation: ids, messages, graph."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secagg_federation import from_plain

from secure_fed.secagg import ComponentSpec, KRegular, SecAggParams, SessionContext, VectorSchema, keys, messages
from secure_fed.secagg.encoding import encode
from secure_fed.secagg.graph import random_graph
from secure_fed.secagg.session import advertisements_hash, survivors_statement
from secure_fed.secagg.shares import note_hash, share_hash, shares_statement

VECTORS = Path(__file__).parent / "vectors"


def cases(name: str):
    loaded = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return pytest.mark.parametrize("case", loaded, ids=lambda case: case["name"])


@cases("session")
def test_session_ids_have_their_known_values(case):
    numbers = dict(case["params"], dp_only=frozenset(case["params"]["dp_only"]))
    numbers["graph"] = KRegular(*numbers["graph"]) if numbers["graph"] else None
    params = SecAggParams(**numbers)
    schema = VectorSchema(tuple(ComponentSpec(name, size, frozenset(own)) for name, size, own in case["components"]))
    hashes = bytes.fromhex(case["roster_hash"]), bytes.fromhex(case["policy_hash"])
    public = {name: bytes.fromhex(key) for name, key in case["public_keys"].items()}
    context = SessionContext(params, schema, case["run"], case["round"], case["attempt"], *hashes, public)
    assert params.digest().hex() == case["params_digest"]
    assert schema.digest().hex() == case["schema_digest"]
    assert context.kid.hex() == case["kid"]
    u1_hash = advertisements_hash([bytes.fromhex(raw) for raw in case["advertisements"]])
    assert u1_hash.hex() == case["u1_hash"]
    assert context.sid(u1_hash, case["u2"], bytes.fromhex(case["model_hash"])).hex() == case["sid"]


def statement(of: str, inputs: dict) -> bytes:
    if of == "advertise":
        return messages.Advertise(**inputs, signature=b"").statement()
    if of == "masked":
        return messages.Masked(**inputs, signature=b"").statement()
    if of == "survivors":
        return survivors_statement(**inputs)
    ids = inputs["kid"], inputs["dealer"], inputs["holder"]
    hashes = {name: share_hash(*ids, name, share) for name, share in inputs["shares"].items()}
    return shares_statement(*ids, hashes, note_hash(*ids, inputs["padded_note"]))


@cases("statements")
def test_signed_statements_have_their_known_bytes_and_signatures(case):
    made = statement(case["statement_of"], from_plain(case["inputs"]))
    assert made.hex() == case["statement"]
    signer = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["signer_private"]))
    assert signer.sign(made).hex() == case["signature"]
    assert keys.verify(signer.public_key().public_bytes_raw(), bytes.fromhex(case["signature"]), made)


@cases("messages")
def test_wire_messages_have_their_known_bytes_and_read_them_back(case):
    kinds = {kind.NAME: kind for kind in messages.Message.__subclasses__()}
    fields = from_plain(case["fields"])
    encoded = bytes.fromhex(case["encoded"])
    read = kinds[case["name"]].from_bytes(encoded)
    assert read.to_bytes() == encoded
    values = dataclasses.asdict(read)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()} == fields


def test_every_wire_message_has_a_known_answer():
    known = {case["name"] for case in json.loads((VECTORS / "messages.json").read_text())["cases"]}
    assert known == {kind.NAME for kind in messages.Message.__subclasses__()}


@cases("sealed_share")
def test_sealed_share_opens_to_its_known_content(case):
    private = bytes.fromhex(case["holder_private"])
    assert keys.public_of(private).hex() == case["holder_public"]
    shared = keys.agree(private, bytes.fromhex(case["dealer_public"]))
    assert shared.hex() == case["shared"]
    kid = bytes.fromhex(case["kid"])
    key = keys.derive(shared, "share", kid, [case["dealer"], case["holder"]])
    assert key.hex() == case["key"]
    associated = encode("sealed-share", [kid, case["dealer"], case["holder"], bytes.fromhex(case["u1_hash"])])
    assert associated.hex() == case["associated"]
    assert keys.unseal(key, bytes.fromhex(case["sealed"]), associated).hex() == case["plaintext"]


@cases("commitment")
def test_commitment_has_its_known_value(case):
    kid, seed = bytes.fromhex(case["kid"]), bytes.fromhex(case["seed"])
    assert keys.commit(kid, case["owner"], case["component"], seed).hex() == case["commitment"]


@cases("graph")
def test_graph_has_its_known_order_and_neighbours(case):
    graph = random_graph(bytes.fromhex(case["seed"]), tuple(case["purpose"]), tuple(case["nodes"]), case["degree"])
    assert list(graph.order) == case["order"]
    assert {node: sorted(graph.neighbours(node)) for node in case["nodes"]} == case["neighbours"]
