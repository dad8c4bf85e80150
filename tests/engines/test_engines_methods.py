"""Every baseline runs end to end under DP and masks, is charged for what it releases, and its ledgers verify."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from secure_fed.engines.runner import start
from secure_fed.ledger import Reserve, read_ledger, verify

TINY = (
    "data.patients=150",
    "federation.sites=4",
    "federation.ownership=1:0:3",
    "federation.rounds=2",
    "federation.corrupt=1",
    "federation.public_fraction=0.1",
    "evaluation.every=2",
)
EXTRA = {
    "fin": (
        "federation.rounds=3",
        "method.loss=logits",
        "method.refit_share=0.2",
        "method.train_with_modality_dropout=0.3",
    ),
    "fin_uncertainty": ("method.source=inputs",),
    "mean_fill": ("method.releases=2",),
    "generative": ("method.generator.max_tokens=4", "method.generator.d_model=8"),
}
TRANSLATORS = {"translator.image_to_text", "translator.text_to_image"}
ENCODERS_AND_FUSION = {"encoder.image", "encoder.text", "fusion"}
COMPONENTS = {
    "fin": TRANSLATORS,
    "fin_uncertainty": TRANSLATORS,
    "mean_fill": {"mean.image", "mean.text"},
    "vae": {"vae.image_to_text", "vae.text_to_image"},
    "generative": {"generator.image_to_text"},
}
PHASES = {
    "fin": {"classify", "translate", "refit"},
    "fin_uncertainty": {"classify", "translate"},
    "mean_fill": {"classify", "image", "text"},
    "vae": {"classify", "autoencode"},
    "generative": {"classify", "generate"},
}


METHODS = (
    "uniform_fill",
    "mean_fill",
    "fin",
    "fin_uncertainty",
    "vae",
    "car_mfl",
    "generative",
    "drop",
    "complete",
)


@pytest.mark.parametrize("method", METHODS)
def test_a_baseline_runs_under_dp_and_masks(method, make_config) -> None:
    folder = start(make_config(*TINY, f"method={method}", *EXTRA.get(method, ())))
    summary = json.loads((folder / "summary.json").read_text())
    assert verify([folder]).ok
    rounds = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["survivors"] == len(summary["members"]) for line in rounds), "every site went along"
    assert summary["epsilon_max"] <= summary["epsilon_target"]
    assert set(summary["components"]) == ENCODERS_AND_FUSION | COMPONENTS.get(method, set())
    assert all(np.isfinite(values).all() for values in load_file(folder / "model.safetensors").values())
    assert set(summary["auroc_macro_missing"]) == {"image", "text"}
    phases: dict[str, set[str]] = {}
    for name in summary["members"]:
        records = read_ledger(folder / "sites" / name / "ledger.jsonl")
        phases[name] = {record.body.phase for record in records if isinstance(record.body, Reserve)}
    (lacking,) = [name for name, member in summary["members"].items() if len(member["owns"]) == 1] or [None]
    expected = PHASES.get(method, {"classify"})
    assert all(found == expected for name, found in phases.items() if name != lacking)
    if method == "complete":
        assert lacking is None
        assert any("upper reference" in text for text in summary["warnings"])
    elif method == "drop":
        assert phases[lacking] == set()
        assert summary["epsilon"][lacking] == 0.0
        assert summary["members"][lacking]["phases"] == []
        assert lacking not in summary["components"]["fusion"]["owners"]
    else:
        assert phases[lacking] == expected - {"text", "autoencode", "generate", "translate"}
