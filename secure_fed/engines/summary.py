"""The numbers of a finished run, computed from its files: ledgers, metrics, plans and the final assessment."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from secure_fed.accounting import epsilon
from secure_fed.data import Records
from secure_fed.engines.simulated_sites import SimulatedSites
from secure_fed.federation.facts import Federation
from secure_fed.federation.masking import secagg_params
from secure_fed.federation.plan import SitePlan
from secure_fed.ledger import Reserve, read_ledger, spent
from secure_fed.methods.base import GradientPhase, HistogramPhase
from secure_fed.models.multimodal import MultimodalModel
from secure_fed.privacy.plan import GaussianPlan
from secure_fed.server.assessment import Assessment
from secure_fed.server.cost import Cost
from secure_fed.server.evaluation import ALL_PRESENT
from secure_fed.server.training import Progress
from secure_fed.versions import versions

SCHEMA = "secure_fed.summary/1"


def summarise(
    folder: Path,
    federation: Federation,
    plans: Mapping[str, SitePlan | None],
    assessment: Assessment,
    progress: Progress,
    model: MultimodalModel,
    simulated: SimulatedSites,
) -> dict[str, Any]:
    """The content of summary.json. Epsilon is what the ledgers say was charged, not what was planned."""
    config = federation.config
    private = config.privacy.mode == "dp"
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    ledgers = {site.name: read_ledger(folder / "sites" / site.name / "ledger.jsonl") for site in federation.sites}
    charged = {site: epsilon(spent(records, progress.run), config.privacy.delta) for site, records in ledgers.items()}
    left_out = assessment.scores[ALL_PRESENT].left_out
    return {
        "schema": SCHEMA,
        "run": progress.run,
        "name": config.name,
        "status": "finished",
        "method": config.method.name,
        "data": config.data.name,
        "seed": config.seed,
        **assessment.facts(),
        "evaluation": _evaluation(federation, plans, metrics),
        "holdout": _size(simulated.holdout),
        "public_set": _public_set(federation, simulated.public),
        "epsilon": charged if private else {},
        "epsilon_max": max(charged.values()) if private else None,
        "epsilon_target": config.privacy.epsilon if private else None,
        "delta": config.privacy.delta if private else None,
        "accountant": "pld",
        "privacy": config.privacy.mode,
        "unit": config.privacy.unit,
        "max_records_per_unit": config.privacy.max_records_per_unit,
        "relation": "add_or_remove_one",
        "rounds": config.federation.rounds,
        "rounds_burned": progress.burned,
        "rounds_skipped": progress.skipped,
        "rounds_charged_again": _charged_again(ledgers, progress.run),
        "resumed": progress.resumed,
        "sites": len(federation.sites),
        "members": _members(federation, plans),
        "components": _components(federation, metrics),
        "statistics": _statistics(federation, metrics),
        "cost": _cost(assessment.cost, metrics),
        "server_step": config.server_step,
        "engine": config.engine.name,
        "wall_s": round(progress.wall_s, 2),
        "insecure_reproducible": config.insecure_reproducible,
        "model_sha256": model.digest().hex(),
        "warnings": warnings_of(federation, plans, left_out, resumed=progress.resumed),
        "secagg": secagg_facts(federation, metrics),
        "data_notes": json.loads((folder / "data_notes.json").read_text(encoding="utf-8")),
        "model_notes": {name: list(notes) for name, notes in federation.model.notes().items()},
        "public_parameters": federation.model.public_parameters(),
        "versions": versions(),
    }


def _size(records: Records) -> dict[str, int]:
    return {"records": len(records), "patients": len(set(records.unit_ids))}


def _public_set(federation: Federation, public: Records) -> dict[str, Any] | None:
    """What was kept from the sites for a public paired set, and the phases that see it; None where nothing was.

    The fraction keeps it from them whatever the method, so that methods can be compared on the same sites: one that
    needs none has neither digest nor phases here.
    """
    if not len(public):
        return None
    used = federation.method.needs_public_set
    return {
        "fraction": federation.config.federation.public_fraction,
        **_size(public),
        "sha256": federation.config.federation.public_set if used else None,
        "phases": [phase.name for phase in federation.phases] if used else [],
    }


def warnings_of(
    federation: Federation,
    plans: Mapping[str, SitePlan | None],
    labels_left_out: Sequence[str] = (),
    *,
    resumed: int = 0,
) -> list[str]:
    """What weakens the guarantee or the result of this run; shown on top of every output."""
    config = federation.config
    warnings = [text for text in (_clipped_noise(federation, plan) for plan in plans.values()) if text][:1]
    if federation.method.ideal:
        warnings.append(
            f"method={config.method.name}: an upper reference in which every simulated site has every modality, "
            "whatever federation.ownership says; no federation that misses something can run it"
        )
    out = [site.name for site in federation.sites if site.name not in plans]
    if out:
        warnings.append(
            f"{', '.join(out)}: the owner's budget or policy does not admit this run, which goes on without"
        )
    idle = [
        site.name
        for site in federation.sites
        if all(isinstance(phase, HistogramPhase) for phase in federation.phases_of(site))
    ]
    if idle:
        warnings.append(f"{', '.join(idle)}: method={config.method.name} trains nothing at these sites")
    if config.privacy.mode == "off":
        warnings.append("privacy=off: nothing protects the records; for comparison only")
    if config.insecure_reproducible:
        warnings.append(
            "insecure_reproducible=true: noise and sampling follow from the seed, so this run gives no privacy"
        )
    if config.federation.alone is not None:
        warnings.append(
            f"federation.alone={config.federation.alone}: one of {config.federation.sites} sites trained by itself, on "
            "what it owns; for comparison only"
        )
    if config.secagg.mode == "off":
        warnings.append("secagg=off: the coordinator sees every site's update; for comparison only")
    else:
        warnings += _masking_warnings(federation)
    if config.strategy.name == "flower":
        warnings.append(
            "strategy=flower, server_step: unverified: sites cannot recompute the server's step, so nothing ties the "
            "model that they are sent to the sums that were opened"
        )
        if resumed:
            warnings.append(
                f"the run was resumed {resumed} times: what a Flower strategy remembers (momentum) began anew each time"
            )
    if labels_left_out:
        warnings.append(
            f"labels left out of every score, because the hold-out has one class only: {', '.join(labels_left_out)}"
        )
    return warnings


def _masking_warnings(federation: Federation) -> list[str]:
    warnings = list(secagg_params(federation).cautions())
    if federation.config.federation.corrupt == 0:
        warnings.append(
            "federation.corrupt=0: if one site colludes with the server, masks do not protect the others; DP alone does"
        )
    guard = "privacy=off, so nothing protects it" if federation.config.privacy.mode == "off" else "DP alone protects it"
    warnings += [
        f"component {name}: floor 1, so its opened sum can be one single site's update, which the coordinator then "
        f"sees as it is; {guard}"
        for name in sorted(federation.dp_only)
        if federation.floor(name) == 1
    ]
    return warnings


def _clipped_noise(federation: Federation, plan: SitePlan | None) -> str | None:
    """A caution where three deviations of a site's noise in one round pass the ring's clip."""
    for planned in plan.phases if plan else ():
        release = planned.release
        if isinstance(release, GaussianPlan) and isinstance(planned.phase, GradientPhase):
            step = release.noise_multiplier * release.max_grad_norm / release.expected_batch
            deviation = planned.phase.learning_rate * step * math.sqrt(release.steps)
            if 3 * deviation > federation.config.secagg.clip:
                return (
                    f"the noise of {planned.phase.name} has a deviation of {deviation:.2g} a round at a site of "
                    f"{release.declared_n} records, and secagg.clip={federation.config.secagg.clip:g} cuts it: "
                    "use more records, a lower learning rate or a larger secagg.clip"
                )
    return None


def _charged_again(ledgers: Mapping[str, Any], run: str) -> int:
    """Steps of the schedule for which some site was charged more than once."""
    again: set[int] = set()
    for records in ledgers.values():
        charges = [r.body for r in records if isinstance(r.body, Reserve) and r.body.run == run]
        counts = Counter((body.phase, body.step) for body in charges)
        again |= {step for (_, step), count in counts.items() if count > 1}
    return len(again)


def _members(federation: Federation, plans: Mapping[str, SitePlan | None]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for site in federation.sites:
        plan = plans.get(site.name)
        members[site.name] = {
            "owns": sorted(site.owned),
            "declared_n": site.declared_n,
            "noise_multiplier": plan.phases[0].per_round.noise_multiplier if plan and plan.phases else None,
            "phases": [phase.name for phase in federation.phases_of(site)],
        }
    return members


def _components(federation: Federation, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Every component of the model; without a floor where sites never upload it (it is solved from a statistic)."""
    return {name: _summed(federation, name, size, metrics) for name, size in federation.model.component_sizes().items()}


def _statistics(federation: Federation, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Slices that are no component: sums from which the server solves one, or scores the model."""
    phases = [phase for phase in federation.phases if not isinstance(phase, GradientPhase)]
    return {name: _summed(federation, name, phase.size, metrics) for phase in phases for name in phase.uploads()}


def _cost(cost: Cost, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a round cost, over all rounds with their retries, and what the model costs to use."""
    turns = sum(line["participants"] for line in metrics)
    return {
        "parameters": cost.parameters,
        "parameters_total": sum(cost.parameters.values()),
        "flops_inference": cost.inference,
        "flops_imputation": cost.imputation,
        "bytes_up_per_site_round": round(sum(line["bytes_up"] for line in metrics) / turns, 1),
        "bytes_down_per_site_round": round(sum(line["bytes_down"] for line in metrics) / turns, 1),
        "seconds_per_round": round(sum(line["wall_s"] for line in metrics) / len(metrics), 4),
    }


def _evaluation(
    federation: Federation, plans: Mapping[str, SitePlan | None], metrics: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How the model was scored beside the public hold-out, and the last figures; nothing there with holdout alone."""
    config = federation.config.evaluation
    if config.name == "holdout":
        return {"name": config.name}
    done = [line for line in metrics if "evaluation" in line]
    views = done[-1]["evaluation"] if done else {}
    phase = next(phase for phase in federation.phases if isinstance(phase, HistogramPhase))
    return {
        "name": config.name,
        "planned": phase.rounds,
        "done": len(done),
        "after_rounds": done[-1]["step"] if done else None,
        "fraction": config.fraction,
        "bins": config.bins,
        "logit_range": config.logit_range,
        # The counts themselves stay in metrics.jsonl.
        "views": {view: {key: score[key] for key in score if key != "counts"} for view, score in views.items()},
        "charged": {
            site: {"noise_multiplier": planned.per_round.noise_multiplier, "bound": planned.sensitivity}
            for site, plan in plans.items()
            for planned in (plan.phases if plan else ())
            if planned.phase.name == phase.name
        },
    }


def _summed(federation: Federation, name: str, size: int, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    masked = federation.config.secagg.mode == "on" and name in federation.slice_names
    return {
        "parameters": size,
        "owners": sorted(federation.owners(name)),
        "floor": federation.floor(name) if masked else None,
        "dp_only": name in federation.dp_only,
        "kept": sum(name in line["kept"] for line in metrics),
    }


def secagg_facts(federation: Federation, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How sums were masked, and what it cost on the wire. Without masks there is only the traffic."""
    secagg = federation.config.secagg
    keys = ("step", "round", "participants", "survivors", "bytes_up", "bytes_down")
    traffic = {
        "bytes_up_per_parameter": _ratio(metrics, "bytes_up", lambda line: _uploaded(federation, line)),
        "bytes_down_per_parameter": _ratio(metrics, "bytes_down", lambda line: _offered(federation, line)),
        "rounds": [{key: line[key] for key in keys} for line in metrics],
    }
    if secagg.mode == "off":
        return {"mode": "off", **traffic}
    params = secagg_params(federation)
    graph: dict[str, str | int] = {"name": secagg.graph}
    if params.graph is not None:
        graph |= {"degree": params.graph.degree, "threshold": params.graph.threshold}
    return {
        "mode": "on",
        "threshold": params.threshold,
        "corrupt": params.max_corrupt,
        "min_cohort": params.quorum,
        "floor": params.default_floor,
        "graph": graph,
        "value_bits": params.value_bits,
        "wire_bits": params.wire_bits,
        "cautions": list(params.cautions()),
        **traffic,
    }


def _ratio(
    metrics: Sequence[Mapping[str, Any]], key: str, parameters: Callable[[Mapping[str, Any]], int]
) -> float | None:
    """Bytes of all rounds, retries included, over the parameters that they carried; None where there were none."""
    carried = sum(parameters(line) for line in metrics)
    return round(sum(line[key] for line in metrics) / carried, 3) if carried else None


def _uploaded(federation: Federation, line: Mapping[str, Any]) -> int:
    """Parameters that entered an opened sum, counted at each contributor."""
    sizes = {part.name: part.size for part in federation.slices_at(line["step"])}
    return sum(sizes[name] * len(sites) for name, sites in line["contributors"].items())


def _offered(federation: Federation, line: Mapping[str, Any]) -> int:
    """Parameters that were trained, counted at each site that took part, as every site follows the whole model."""
    sizes = {part.name: part.size for part in federation.slices_at(line["step"])}
    return sum(sizes.values()) * int(line["participants"])
