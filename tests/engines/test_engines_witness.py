"""Sites keep each other's anchors in a real federation: a home that forgot is found before it charges anything."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from federation_bench import Bench, RecordingTransport
from puppeteer import Made, draw_instead_of_training
from typer.testing import CliRunner

from secure_fed.cli import app
from secure_fed.client import site as client_site
from secure_fed.client.books import open_ledger
from secure_fed.client.halt import DOMAIN, check_evidence, evidence_of, halted, resume
from secure_fed.client.home import Home
from secure_fed.client.witness import LedgerBehind, Witnesses, packed, unpacked
from secure_fed.config import compose_config, freeze
from secure_fed.errors import LedgerError
from secure_fed.federation.wire import Parcel
from secure_fed.identity import Roster, canonical_json, domain_separated
from secure_fed.ledger import Anchor, Note, Reserve, make_anchor, read_ledger
from secure_fed.secagg.messages import Advertise, ShareDelivery
from secure_fed.secagg.notes import NOTE_BYTES
from secure_fed.server.round import Coordinator

SITE, PEER = "site02", "site03"
OVERRIDES = (
    "data.patients=240",
    "federation.sites=5",
    "federation.ownership=0:0:5",
    "federation.rounds=12",
    "federation.corrupt=1",
    "method=zero_fill",
    "method.classify.steps=1",
    "method.classify.learning_rate=1",
)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> Made:
    """A little noise instead of training, charged as ever."""
    return draw_instead_of_training(monkeypatch)


@pytest.fixture(scope="module")
def founded(tmp_path_factory) -> Bench:
    """After two rounds, each of five exchanges."""
    with pytest.MonkeyPatch.context() as patch:
        draw_instead_of_training(patch)
        bench = Bench.make(freeze(compose_config(list(OVERRIDES)), tmp_path_factory.mktemp("witness") / "run"))
        for number in range(2):
            assert bench.round(number, number).survivors == 5
    return bench


@pytest.fixture
def bench(founded, tmp_path) -> Bench:
    """The same federation at that point, in a folder of its own."""
    folder = shutil.copytree(founded.folder, tmp_path / "run")
    transport, old = RecordingTransport({}, founded.transport.key), founded.coordinator
    coordinator = Coordinator(old.federation, old.roster, transport, transport.key, old.attempt)
    bench = Bench(folder, founded.prepared, {}, transport, coordinator, founded.held)
    transport.sites = bench.sites
    for site in founded.sites:
        bench.restart(site)
    return bench


def folder(bench: Bench, site: str = SITE) -> Path:
    return bench.folder / "sites" / site


def copy_of(bench: Bench, to: Path) -> Path:
    return shutil.copytree(folder(bench), to)


def put_back(bench: Bench, copied: Path) -> None:
    shutil.rmtree(folder(bench))
    shutil.copytree(copied, folder(bench))
    bench.restart(SITE)


def forget_two_rounds(bench: Bench, to: Path, *, more: bool = False) -> Path:
    """Play rounds 2 and 3 and put the home back to what it was before them; where its newest copy lies."""
    copied = copy_of(bench, to / "copy")
    for number in (2, 3):
        assert bench.round(number, number, more=more).survivors == 5
    newest = copy_of(bench, to / "newest")
    put_back(bench, copied)
    return newest


def witnesses(bench: Bench, site: str) -> tuple[Anchor, ...]:
    return Witnesses(bench.home(site)).all()


def length(bench: Bench, site: str = SITE) -> int:
    return len(read_ledger(folder(bench, site) / "ledger.jsonl"))


def codes(bench: Bench, action: str, site: str = SITE) -> list[str]:
    return [answer.code for name, asked, answer in bench.transport.received if (name, asked) == (site, action)]


def halts(bench: Bench) -> dict[str, str]:
    return {site: found.code for site in bench.sites if (found := halted(bench.home(site))) is not None}


def roster(bench: Bench) -> Roster:
    return Roster.load(bench.folder / "roster.json")


def go_on_without(bench: Bench, number: int) -> None:
    """The next round is one of the others, and the site charges nothing in it."""
    before = length(bench)
    assert bench.round(number, number).survivors == 4
    assert length(bench) == before
    assert halts(bench) == {SITE: "ledger_behind"}


def test_every_site_keeps_what_every_other_said_and_the_ledgers_continue_all_of_it(bench) -> None:
    assert halts(bench) == {}
    for site in bench.sites:
        kept = witnesses(bench, site)
        assert {anchor.site for anchor in kept} == bench.sites.keys() - {site}
        for anchor in kept:
            assert anchor.agrees(read_ledger(folder(bench, anchor.site) / "ledger.jsonl"))
    public = (folder(bench) / "witness.jsonl").read_text()
    assert str(bench.folder) not in public
    assert {key for line in public.splitlines() for key in json.loads(line)} == {
        *("schema", "site", "length", "head", "signature"),
    }


def test_the_next_rounds_advertisement_carries_the_charge_of_the_round_under_way(bench) -> None:
    """So peers know of a charge before the sum is opened that it was made for."""
    for number in (2, 3):
        bench.round(number, number, more=True)
    ahead = [answer.next_body for site, action, answer in bench.transport.received if (site, action) == (SITE, "mask")]
    anchor = unpacked(SITE, Advertise.from_bytes(ahead[-1]).notice)
    assert anchor is not None
    last = read_ledger(folder(bench) / "ledger.jsonl")[anchor.length - 1].body
    assert isinstance(last, Reserve)
    assert last.round == 3
    assert {Witnesses(bench.home(site)).latest(SITE) for site in bench.sites if site != SITE} == {anchor}


@pytest.mark.parametrize("more", [False, True], ids=["five exchanges", "prepared ahead"])
def test_a_home_put_back_in_the_middle_of_a_run_halts_before_it_charges_and_the_others_go_on(
    bench, tmp_path, quick, more
) -> None:
    newest = forget_two_rounds(bench, tmp_path, more=more)
    charged = bench.reserves(SITE)
    quick.clear()
    rounds = 4
    while not halts(bench):
        assert bench.round(rounds, rounds, more=more).survivors == 4
        rounds += 1
    assert rounds <= 6
    assert bench.reserves(SITE) == charged
    assert not any(site == SITE for site, _ in quick), "no update was made"
    assert codes(bench, "mask")[-1] == "ledger_behind"
    bench.restart(SITE)
    go_on_without(bench, rounds)
    assert [record.round for record in bench.reserves("site01")] == list(range(rounds + 1))

    evidence = evidence_of(bench.home(SITE))
    content = check_evidence(evidence, roster(bench))
    assert content["facts"]["anchors"].keys() == bench.sites.keys() - {SITE}
    for line in content["facts"]["anchors"].values():
        anchor = Anchor.from_line(line.encode())
        assert anchor.length > content["facts"]["ledger"]["length"]
        assert anchor.agrees(read_ledger(newest / "ledger.jsonl")), "it did sign that"
    said = CliRunner().invoke(app, ["site", "evidence", str(evidence), "--roster", str(bench.folder / "roster.json")])
    assert said.exit_code == 0, said.output
    assert "ledger_behind" in said.output

    with pytest.raises(LedgerBehind):
        resume(bench.home(SITE), "go on all the same")
    go_on_without(bench, rounds + 1)
    shutil.copy(newest / "ledger.jsonl", folder(bench) / "ledger.jsonl")
    resume(bench.home(SITE), "the newest copy of the ledger is back")
    assert bench.round(rounds + 2, rounds + 2).survivors == 5
    assert halts(bench) == {}


def test_a_charge_that_no_advertisement_followed_is_forgotten_unseen_which_is_a_named_limit(bench, tmp_path) -> None:
    """The last round of a run, until the next run begins: nobody was told what came of its charge."""
    copied = copy_of(bench, tmp_path / "copy")
    bench.round(2, 2)
    put_back(bench, copied)
    assert bench.round(3, 3).survivors == 5
    assert halts(bench) == {}
    assert [record.round for record in bench.reserves(SITE)] == [0, 1, 3]


def test_one_witness_is_enough(bench, tmp_path) -> None:
    forget_two_rounds(bench, tmp_path)
    for site in bench.sites.keys() - {SITE, PEER}:
        (folder(bench, site) / "witness.jsonl").unlink()
    go_on_without(bench, 4)
    facts = check_evidence(evidence_of(bench.home(SITE)), roster(bench))["facts"]
    assert facts["anchors"].keys() == {PEER}


def test_a_ledger_that_grew_elsewhere_after_it_was_put_back_is_found_by_what_lies_before_its_end(
    bench, tmp_path
) -> None:
    """Another run without peers, or the operator's notes, can make it longer than what the witnesses have."""
    newest = forget_two_rounds(bench, tmp_path)
    seen = len(read_ledger(newest / "ledger.jsonl"))
    home = bench.home(SITE)
    with open_ledger(home, home.policy()) as ledger:
        while len(ledger) <= seen + 3:
            ledger.append(Note(code="remark", text="elsewhere"))
    go_on_without(bench, 4)


@pytest.mark.parametrize("harm", ["cut at its end", "removed"])
def test_a_ledger_harmed_alone_is_found_by_the_site_itself_before_anything_else(bench, harm) -> None:
    for site in bench.sites.keys() - {SITE}:
        (folder(bench, site) / "witness.jsonl").unlink()
    path = folder(bench) / "ledger.jsonl"
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    before = path.read_bytes() if path.exists() else None
    assert bench.round(2, 2).survivors == 4
    assert codes(bench, "advertise")[-1] == "ledger_behind"
    assert (path.read_bytes() if path.exists() else None) == before
    assert check_evidence(evidence_of(bench.home(SITE)), roster(bench))["facts"]["anchors"].keys() == {SITE}


def test_a_home_begun_anew_under_the_same_key_halts_before_its_ledger_begins(bench) -> None:
    policy, key = bench.home(SITE).policy(), (folder(bench) / "private" / "identity.pem").read_bytes()
    shutil.rmtree(folder(bench))
    Home.create(folder(bench), policy)
    (folder(bench) / "private" / "identity.pem").write_bytes(key)
    bench.restart(SITE)
    assert bench.round(2, 2).survivors == 4
    assert halts(bench) == {SITE: "ledger_behind"}
    assert not (folder(bench) / "ledger.jsonl").exists()


INVENTED = {
    "rubbish": lambda bench: b"\xff" * NOTE_BYTES,
    "signed by the peer": lambda bench: packed(make_anchor(SITE, 99, bytes(32), bench.home(PEER).signing_key())),
    "of the peer": lambda bench: packed(make_anchor(PEER, 99, bytes(32), bench.home(PEER).signing_key())),
    "too long to be sent": lambda bench: bytes(NOTE_BYTES + 1),
}


@pytest.mark.parametrize("case", INVENTED)
def test_a_corrupt_peers_invention_halts_nobody(bench, monkeypatch, case) -> None:
    note = INVENTED[case](bench)
    monkeypatch.setattr(bench.sites[PEER]._witnesses, "answer", lambda notices, keys: dict.fromkeys(notices, note))
    assert bench.round(2, 2).survivors == (4 if case == "too long to be sent" else 5)
    assert halts(bench) == {}
    log = (folder(bench) / "private" / "site.log").read_text() if case != "too long to be sent" else "witness"
    assert "witness" in log
    assert [record.round for record in bench.reserves(SITE)] == [0, 1, 2]


def test_a_corrupt_members_notice_is_not_kept_and_the_round_goes_on(bench, monkeypatch) -> None:
    real = client_site.own_anchor

    def lie(home: Home, site: str) -> Anchor | None:
        """It says that another member's ledger is longer than it is."""
        return make_anchor(SITE, 99, bytes(32), home.signing_key()) if site == PEER else real(home, site)

    monkeypatch.setattr(client_site, "own_anchor", lie)
    assert bench.round(2, 2).survivors == 5
    assert bench.round(3, 3).survivors == 5
    assert halts(bench) == {}
    assert all(anchor.length < 99 for site in bench.sites for anchor in witnesses(bench, site))


def test_evidence_with_an_anchor_that_the_site_did_not_sign_does_not_hold(bench, tmp_path) -> None:
    """The site signs its evidence, so this is a site that invents it."""
    forget_two_rounds(bench, tmp_path)
    go_on_without(bench, 4)
    home = bench.home(SITE)
    content = json.loads(evidence_of(home).read_bytes())
    other = make_anchor(SITE, 99, bytes(32), bench.home(PEER).signing_key())
    del content["signature"]
    content["facts"]["anchors"][PEER] = other.to_line().decode()
    content["signature"] = home.signing_key().sign(domain_separated(DOMAIN, canonical_json(content))).hex()
    forged = tmp_path / "forged.json"
    forged.write_bytes(canonical_json(content))
    with pytest.raises(LedgerError, match=f"an anchor from {PEER} that {SITE} did not sign"):
        check_evidence(forged, roster(bench))


def test_a_server_that_leaves_the_witnesses_out_leaves_them_out_of_the_sum(bench, tmp_path) -> None:
    """It cannot take a note out of a delivery and keep its sender: that delivery is refused, and nothing is charged."""
    forget_two_rounds(bench, tmp_path)

    honest = []

    def strip(site: str, action: str, parcel: Parcel) -> Parcel:
        if (site, action) != (SITE, "mask"):
            return parcel
        honest.append(parcel)
        delivery = ShareDelivery.from_bytes(parcel.body)
        return replace(parcel, body=replace(delivery, sealed={}).to_bytes())

    bench.transport.before = strip
    charged = bench.reserves(SITE)
    assert bench.round(4, 4).survivors == 4
    assert codes(bench, "mask")[-1] == "wrong_shares"
    assert bench.sites[SITE].handle(honest[0]).code == "wrong_stage", "nor does it get a second try"
    assert bench.reserves(SITE) == charged
    bench.transport.before = lambda site, action, parcel: parcel
    go_on_without(bench, 5)
