"""A small synthetic run folder: ten sites, two phases, one drop-out, real ledgers, and a way to spoil it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secure_fed.accounting import Mechanism, epsilon, filter_order
from secure_fed.identity import Member, Roster, SigningKey
from secure_fed.ledger import Close, Genesis, Ledger, Off, Plan, PlannedPhase, Reserve, Settle, standing
from secure_fed.ledger.budget import planned_mechanisms

RUN = "5f2c9a0b7d1e4c33"
DELTA = 1e-5
SIGMA = 1.93
BOTH = ("image", "text")
COMPONENTS = {
    "encoder.image": (17_328, {"image"}),
    "encoder.text": (33_280, {"text"}),
    "fusion": (910, set()),
    "translator.image_to_text": (1056, {"image", "text"}),
    "translator.text_to_image": (1056, {"image", "text"}),
}


@dataclass
class Example:
    """What to write; tests change fields before `write`."""

    rounds: int = 12
    owns: dict[str, tuple[str, ...]] = field(
        default_factory=lambda: {
            f"site{i:02d}": ("image",) if i <= 5 else ("text",) if i == 6 else BOTH for i in range(1, 11)
        }
    )
    privacy: str = "dp"
    secagg: str = "on"
    reproducible: bool = False
    floors: dict[str, int] = field(default_factory=dict)
    graph: dict[str, Any] = field(default_factory=lambda: {"name": "complete"})
    server_step: str = "verified"
    dropped: dict[int, tuple[str, ...]] = field(default_factory=lambda: {4: ("site03",), 11: ("site07", "site08")})
    labels: tuple[str, ...] = ("Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Lung Opacity")
    changes: dict[str, Any] = field(default_factory=dict)
    config: str = 'name: fin\nmethod:\n  name: fin\nfederation:\n  ownership: "5:1:4"\n'
    noise: dict[str, float] = field(default_factory=dict)
    keys: dict[str, SigningKey] = field(default_factory=dict)
    unit: str = "record"
    most: int = 1
    limit: float = 8.0
    lifetime_claim: bool = False
    earlier: tuple[str, ...] = ()

    @property
    def rng(self) -> str:
        return "insecure_reproducible" if self.reproducible else "os_urandom_aes256ctr"

    def phase(self, step: int) -> str:
        return "translate" if self.rounds > 1 and step >= self.rounds * 5 // 6 else "classify"

    def components(self, step: int) -> list[str]:
        return [name for name in COMPONENTS if name.startswith("translator") == (self.phase(step) == "translate")]

    def owners(self, component: str) -> list[str]:
        return [site for site, owned in self.owns.items() if COMPONENTS[component][1] <= set(owned)]

    def floor(self, component: str) -> int:
        return self.floors.get(component, 3)

    def component(self, name: str) -> dict[str, Any]:
        return {
            "parameters": COMPONENTS[name][0],
            "owners": self.owners(name),
            "floor": self.floor(name) if self.secagg == "on" else None,
            "dp_only": name in self.floors,
            "kept": sum(name in row["kept"] for row in self.steps()),
        }

    def takes_part(self, site: str, step: int) -> bool:
        return any(site in self.owners(component) for component in self.components(step))

    def mechanism(self, site: str = "") -> Mechanism:
        return Mechanism("poisson_gaussian", self.noise.get(site, SIGMA), 0.25, 4)

    def steps(self) -> list[dict[str, Any]]:
        rows = []
        for step in range(self.rounds):
            gone = self.dropped.get(step, ())
            contributors = {name: [s for s in self.owners(name) if s not in gone] for name in self.components(step)}
            share = (step + 1) / self.rounds
            rows.append(
                {
                    "step": step,
                    "round": step,
                    "attempts": 1,
                    "phases": [self.phase(step)],
                    "auroc_macro": 0.5 + 0.33 * share**0.5,
                    "auroc_macro_missing": {
                        "image": 0.5 + 0.24 * share**0.5,
                        "text": 0.5 + 0.19 * share**0.7,
                    },
                    "participants": len(self.owns),
                    "survivors": len(self.owns) - len(gone),
                    "contributors": {n: sites for n, sites in contributors.items() if len(sites) >= self.floor(n)},
                    "kept": [n for n, sites in contributors.items() if len(sites) < self.floor(n)],
                    "bytes_up": 1_534_000,
                    "bytes_down": 2_110_000,
                    "wall_s": 2.31,
                }
            )
        return rows

    def spent(self, site: str) -> float:
        rounds = sum(self.takes_part(site, step) for step in range(self.rounds))
        one = self.mechanism(site)
        total = Mechanism(one.kind, one.noise_multiplier, one.sample_rate, one.steps * rounds)
        return epsilon([total], DELTA)

    def summary(self) -> dict[str, Any]:
        dp = self.privacy == "dp"
        steps = self.steps()
        spent = {site: self.spent(site) for site in self.owns} if dp else {}
        values: dict[str, Any] = {
            "schema": "secure_fed.summary/1",
            "run": RUN,
            "name": "fin",
            "status": "finished",
            "method": "fin",
            "data": "synthetic_cxr",
            "seed": 0,
            "auroc_macro": steps[-1]["auroc_macro"],
            "auroc_macro_missing": steps[-1]["auroc_macro_missing"],
            "auroc_per_label": {name: 0.91 - 0.06 * i for i, name in enumerate(self.labels)},
            "labels_left_out": ["Pleural Other"],
            **self.assessed(),
            "evaluation": {"name": "holdout"},
            "holdout": {"records": 1250, "patients": 480},
            "epsilon": spent,
            "epsilon_max": max(spent.values()) if dp else None,
            "epsilon_target": 8.0 if dp else None,
            "delta": DELTA if dp else None,
            "accountant": "pld",
            "privacy": self.privacy,
            "unit": self.unit,
            "relation": "add_or_remove_one",
            "rounds": self.rounds,
            "rounds_burned": 0,
            "rounds_charged_again": 0,
            "resumed": 0,
            "sites": len(self.owns),
            "members": {
                site: {
                    "owns": list(owned),
                    "declared_n": 375,
                    "noise_multiplier": SIGMA if dp else None,
                    "phases": ["classify", "translate"] if owned == BOTH else ["classify"],
                }
                for site, owned in self.owns.items()
            },
            "components": {name: self.component(name) for name in COMPONENTS},
            "statistics": {},
            "server_step": self.server_step,
            "engine": "in_process",
            "wall_s": 74.2,
            "insecure_reproducible": self.reproducible,
            "warnings": self.masks()["cautions"] if self.secagg == "on" else [],
            "secagg": {
                "mode": self.secagg,
                **(self.masks() if self.secagg == "on" else {}),
                "bytes_up_per_parameter": 3.17,
                "bytes_down_per_parameter": 3.42,
                "rounds": [
                    {k: row[k] for k in ("step", "round", "participants", "survivors", "bytes_up", "bytes_down")}
                    for row in steps
                ],
            },
            "data_notes": {"training records": 3750, "patients": 1440},
            "versions": {"secure_fed": "0.1.0", "torch": "2.13.0", "dp_accounting": "0.6.0"},
        }
        return values | self.changes

    def assessed(self) -> dict[str, Any]:
        """What the summary has of the public hold-out beside AUROC, and of cost."""
        mean = {"cosine": 0.78, "mse": 0.49, "mse_over_variance": 1.0, "rank": 0.5, "recall_at_10": 0.008}
        imputed = {"cosine": 0.83, "mse": 0.3283, "mse_over_variance": 0.67, "rank": 0.21, "recall_at_10": 0.094}
        return {
            "auprc_macro": 0.412,
            "auprc_macro_missing": {"image": 0.291, "text": 0.334},
            "auprc_per_label": {name: 0.52 - 0.07 * i for i, name in enumerate(self.labels)},
            "prevalence": {name: 0.21 - 0.03 * i for i, name in enumerate(self.labels)},
            "auprc_chance": 0.165,
            "missing_rates": [
                {"modality": name, "rate": rate, "auroc_macro": 0.83 - drop * rate, "auprc_macro": 0.412 - drop * rate}
                for name, drop in (("image", 0.09), ("text", 0.14), ("any", 0.115))
                for rate in (0.0, 0.25, 0.5, 0.75, 1.0)
            ],
            "imputation": {
                name: {"records": 1133, **imputed, "calibration": None, "constant_mean": mean} for name in BOTH
            },
            "intervals": {
                "level": 0.95,
                "draws": 1000,
                "patients": 480,
                "auroc_macro": [0.811, 0.848],
                "auprc_macro": [0.387, 0.441],
                "auroc_macro_missing": {"image": [0.712, 0.767], "text": None},
                "auprc_macro_missing": {"image": [0.266, 0.319], "text": [0.308, 0.361]},
                "auroc_per_label": {name: [0.871 - 0.06 * i, 0.943 - 0.06 * i] for i, name in enumerate(self.labels)},
                "auprc_per_label": {name: [0.45 - 0.07 * i, 0.59 - 0.07 * i] for i, name in enumerate(self.labels)},
            },
            "cost": {
                "parameters": {name: size for name, (size, _) in COMPONENTS.items()},
                "parameters_total": sum(size for size, _ in COMPONENTS.values()),
                "flops_inference": 4_289_344,
                "flops_imputation": {"image": 4096, "text": 4096},
                "bytes_up_per_site_round": 153_400.0,
                "bytes_down_per_site_round": 211_000.0,
                "seconds_per_round": 2.31,
            },
        }

    def masks(self) -> dict[str, Any]:
        cautions = [f"component {name}: DP only, floor {floor}" for name, floor in self.floors.items()]
        if self.graph["name"] == "k_regular":
            cautions.append("k-regular graph: semi-malicious server only")
        return {
            "threshold": 6,
            "corrupt": 1,
            "min_cohort": 6,
            "floor": 3,
            "graph": self.graph,
            "value_bits": 20,
            "wire_bits": 24,
            "cautions": cautions,
        }

    def write(self, run: Path) -> Path:
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(self.config, encoding="utf-8")
        (run / "summary.json").write_text(json.dumps(self.summary(), ensure_ascii=False), encoding="utf-8")
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.steps()]
        (run / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
        self.keys = {site: SigningKey.generate() for site in self.owns}
        members = {
            site: Member(public_key=self.keys[site].public_bytes.hex(), owns=owned, declared_n=375)
            for site, owned in self.owns.items()
        }
        Roster.create(members, SigningKey.generate(), coordinator=SigningKey.generate().public_bytes).save(
            run / "roster.json"
        )
        for site in self.owns:
            self.write_ledger(run / "sites" / site / "ledger.jsonl", site)
        return run

    def write_ledger(self, path: Path, site: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        key = self.keys[site]
        genesis = Genesis(
            public_key=key.public_bytes.hex(),
            unit=self.unit,
            relation="add_or_remove_one",
            delta=DELTA,
            epsilon_limit=self.limit if self.privacy == "dp" else None,
            filter_order=filter_order(self.limit, DELTA) if self.privacy == "dp" else None,
            declared_n=375,
            max_records_per_unit=self.most,
            data_set="example",
            lifetime_claim=self.lifetime_claim,
        )
        with Ledger.create(path, site, key, genesis) as ledger:
            for run in (*self.earlier, RUN):
                self.write_run(ledger, site, run)
                if run != RUN:
                    ledger.append(Close(run=run, reason="finished"))

    def write_run(self, ledger: Ledger, site: str, run: str) -> None:
        steps = [step for step in range(self.rounds) if self.takes_part(site, step)]
        if self.privacy == "off":
            for step in steps:
                ledger.append(Off(run=run, step=step, round=step, phase=self.phase(step)))
            return
        ledger.append(self.plan(site, run, ledger))
        for step in steps:
            ledger.append(self.reserve(site, step, run))
            ledger.append(Settle(run=run, step=step, round=step, attempt=0, outcome="released"))

    def plan(self, site: str, run: str, ledger: Ledger) -> Plan:
        steps = [step for step in range(self.rounds) if self.takes_part(site, step)]
        phases = tuple(
            PlannedPhase(
                name=name,
                mechanism=self.mechanism(site),
                max_grad_norm=1.0,
                rounds=sum(self.phase(step) == name for step in steps),
                components=tuple(c for c in COMPONENTS if site in self.owners(c)),
            )
            for name in dict.fromkeys(map(self.phase, steps))
        )
        plan = Plan(
            run=run,
            plan_hash="cd" * 32,
            method="fin",
            phases=phases,
            epsilon=self.limit,
            filter_epsilon=None,
            delta=DELTA,
            accountant="pld",
            versions={"torch": "2.13.0"},
            rng=self.rng,
        )
        planned = planned_mechanisms(plan)
        return plan.model_copy(
            update={
                "epsilon": epsilon(planned, DELTA),
                "filter_epsilon": standing(ledger.records).admission(planned, run),
            }
        )

    def reserve(self, site: str, step: int, run: str = RUN) -> Reserve:
        return Reserve(
            run=run,
            step=step,
            round=step,
            attempt=0,
            phase=self.phase(step),
            mechanism=self.mechanism(site),
            max_grad_norm=1.0,
            sampler="poisson",
            expected_batch=93.75,
            physical_batch=32,
            unit=self.unit,
            max_records_per_unit=self.most,
            declared_n=375,
            relation="add_or_remove_one",
            components=tuple(c for c in self.components(step) if site in self.owners(c)),
            model_hash="ab" * 32,
            rng=self.rng,
            artefact="update",
        )
