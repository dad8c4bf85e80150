"""What the numbers say, in sentences: the summary in plain words, and the guarantee in exact ones.

Page, model card and terminal share these, so that no two outputs of a run can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from secure_fed.report import evaluation, formats
from secure_fed.report.budget import Budget
from secure_fed.report.run_folder import RunFolder, Step, Summary


def paragraph(summary: Summary, rows: Sequence[Step]) -> str:
    """The run in plain words, every figure from the files."""
    modalities = list(summary.auroc_macro_missing)
    sentences = [
        f"{formats.plural(summary.sites, 'site')} trained one model on {formats.listed(modalities)} in "
        f"{formats.plural(summary.rounds, 'round')} without showing each other a record."
    ]
    missing = formats.listed(
        [f"{formats.score(value)} without {name}" for name, value in summary.auroc_macro_missing.items()]
    )
    sentences.append(
        f"On a public hold-out of {formats.plural(summary.holdout.records, 'record')} from "
        f"{formats.plural(summary.holdout.patients, 'patient')} it ranks "
        f"{formats.plural(len(summary.auroc_per_label), 'label')} with a macro AUROC of "
        f"{formats.score(summary.auroc_macro)}" + (f", and {missing}." if missing else ".")
    )
    sentences.append(evaluation.sentence(summary.evaluation))
    sentences.append(_spending(summary))
    sentences.append(_aggregation(summary, rows))
    return " ".join(filter(None, sentences))


def _spending(summary: Summary) -> str:
    if summary.privacy == "off" or summary.epsilon_max is None:
        return "Privacy was off: nothing bounds what the model reveals about a record."
    if summary.insecure_reproducible:
        return (
            f"The ledgers charge ε = {formats.epsilon(summary.epsilon_max)}, which protects nobody here: the noise "
            "can be repeated from the seed."
        )
    target = f" of {formats.limit(summary.epsilon_target)}" if summary.epsilon_target is not None else ""
    most = [site for site, value in summary.epsilon.items() if value == summary.epsilon_max]
    alike = len(most) == len(summary.epsilon)
    where = ", the same at every site" if alike else f" ({formats.ranges(most, limit=40)})"
    return (
        f"The most that a site spent is ε = {formats.epsilon(summary.epsilon_max)}{target} at "
        f"δ = {formats.small(summary.delta)}{where}."
    )


def _aggregation(summary: Summary, rows: Sequence[Step]) -> str:
    if summary.secagg.mode == "off":
        return "Secure aggregation was off: the coordinator received each site's update."
    smallest = fewest_in_a_sum(rows)
    if smallest is None:
        return "The coordinator opened no sum."
    least = min(row.survivors for row in rows)
    lost = (
        "no site dropped out"
        if least >= summary.sites
        else f"at least {least} of {summary.sites} sites stayed to the end of every round"
    )
    if smallest == 1:
        opened = [sites for row in rows for sites in opened_sums(row)]
        alone = sum(len(sites) == 1 for sites in opened)
        return (
            f"Of {formats.plural(len(opened), 'sum')} that the coordinator opened, {formats.count(alone)} had a single "
            f"contributor, and with it that site's own update; {lost}."
        )
    return f"The coordinator saw only masked sums, each over {smallest} sites or more; {lost}."


def fewest_in_a_sum(rows: Iterable[Step]) -> int | None:
    """Contributors of the smallest component sum that was opened; None where none was."""
    return min((len(sites) for row in rows for sites in opened_sums(row)), default=None)


def opened_sums(row: Step) -> list[tuple[str, ...]]:
    """The contributors of each sum that was opened in a round."""
    return [sites for name, sites in row.contributors.items() if name not in row.kept and sites]


def void(summary: Summary) -> str | None:
    """Why the run guarantees nothing, or None where it does."""
    if summary.privacy == "off" or summary.delta is None:
        return "This run gives no privacy guarantee: privacy was off."
    if summary.insecure_reproducible:
        return "This run gives no privacy guarantee: its noise can be repeated by whoever knows the seed."
    return None


def guarantee(summary: Summary) -> str:
    """The guarantee as a statement that can be true or false, or why there is none."""
    if reason := void(summary):
        return reason
    neighbours = {
        "add_or_remove_one": f"adding or removing one {summary.unit}",
        "replace_one": f"replacing one {summary.unit}",
    }[summary.relation]
    return (
        "For each site s, everything that left s during this run, in all rounds and phases together, is "
        f"(εₛ, δ)-differentially private with respect to {neighbours} of s, with εₛ from the table of "
        f"sites and δ = {formats.small(summary.delta)}. The guarantee is local to the site: it holds "
        "against the coordinator, against the other sites and against everybody who receives the model, "
        "and needs no trust in the masks."
    )


def odds(summary: Summary) -> str | None:
    """What the largest epsilon means for one record, without jargon."""
    value = summary.epsilon_max
    if value is None or void(summary) or math.isinf(value):
        return None
    factor = math.exp(value)
    written = f"{factor:.2f}" if factor < 10 else formats.count(int(float(f"{factor:.2g}")))
    return (
        "In the worst case, an observer who knows everything else can shift the odds that a given "
        f"{summary.unit} took part by a factor of about {written} (e^ε), except with probability δ. That "
        "is a bound against the strongest imaginable adversary, not an estimate of what a real attack "
        "achieves."
    )


def _most_records(budget: Budget) -> int:
    return max((charge.max_records_per_unit for ledger in budget.ledgers for charge in ledger.reserves), default=1)


def _sampling(summary: Summary, budget: Budget) -> str:
    rates = {item.mechanism.sample_rate for item in budget.mechanisms if item.artefact == "update"}
    drawn = (
        f"Every step takes every {summary.unit}, so that no amplification by sampling is counted."
        if rates <= {1.0}
        else f"Poisson: every step draws each {summary.unit} independently. Amplification by sampling is counted."
    )
    return f"{drawn} Nothing is counted from drop-outs, from the choice of sites, or from the masks."


def assumptions(run: RunFolder, budget: Budget) -> list[tuple[str, str]]:
    """What the epsilon stands on, as (topic, statement), in the order of an epsilon report."""
    summary = run.summary
    dp = summary.privacy == "dp"
    rngs = tuple(sorted({ledger.rng for ledger in budget.ledgers if ledger.rng}))
    source = {
        (): "a source that the ledgers do not name",
        ("os_urandom_aes256ctr",): "an AES-256 keystream keyed by the operating system",
    }.get(rngs, "the run's seed, at least in part: whoever knows it can repeat them")
    unit = (
        f"One {summary.unit}. A patient with k {summary.unit}s is covered by the same bound only up to "
        "group privacy, which is much weaker."
        if summary.unit == "record"
        else f"One {summary.unit}, with at most {_most_records(budget)} of their records: more are not used."
    )
    relation = {"add_or_remove_one": "Add or remove one", "replace_one": "Replace one"}[summary.relation]
    if dp and budget.replace_one is not None:
        relation += f" (the same ledger under replace-one: ε = {formats.epsilon(budget.replace_one)})"
    accountant = f"{summary.accountant.upper()} (dp-accounting)"
    if dp and budget.renyi is not None:
        accountant += f"; Rényi accounting of the same ledger, a looser bound: ε = {formats.epsilon(budget.renyi)}"
    everything = [
        ("Unit of privacy", unit),
        ("Neighbouring data sets", relation + "."),
        ("Accountant", accountant + "."),
        ("Sampling", _sampling(summary, budget)),
        ("Randomness", f"Noise and sampling came from {source}."),
    ]
    if not dp:
        everything = []
    return [
        *everything,
        ("What the coordinator sees", seen_by_server(summary)),
        *_masks(summary),
        ("Server step", _server_step(summary)),
        ("What is released", "The model after every round, to the coordinator and to every site."),
        (
            "Not charged",
            "The hold-out is treated as public: its scores are exact and cost nothing. Hyperparameters "
            "chosen by looking at other runs on the same records are not charged either.",
        ),
        (
            "Public by declaration",
            f"Each site's name, its modalities and its declared number of {summary.unit}s N; rates, weights and the "
            "check on δ stand on N, not on the true count.",
        ),
        (
            "Out of scope",
            "Timing and memory side channels at a site, malicious updates that spoil the model, and "
            "what the labels themselves reveal about people outside the data.",
        ),
    ]


def public_set(summary: Summary) -> str | None:
    """What was given away for a paired set, and to what; None where nothing was."""
    found = summary.public_set
    if found is None:
        return None
    size = (
        f"{formats.plural(found.records, 'record')} from {formats.plural(found.patients, 'patient')} who are at no site"
    )
    if not found.phases:
        return f"{size}; kept from the sites by federation.public_fraction, and used by nothing in {summary.method}"
    phases = formats.plural(len(found.phases), "phase")
    return f"{size}; every site holds them, for {phases} of {summary.method}: {', '.join(found.phases)}"


def is_k_regular(summary: Summary) -> bool:
    """Whether sites masked with some of the others only."""
    return summary.secagg.graph is not None and summary.secagg.graph.name == "k_regular"


def graph(summary: Summary) -> str | None:
    """Who masked with whom, and where that is k-regular what it stands against; None without masks."""
    facts = summary.secagg.graph
    if facts is None or facts.name == "complete":
        return "complete graph, every owner masks with every other" if facts else None
    return (
        f"k-regular graph, semi-malicious server only: {facts.degree} neighbours each, "
        f"{facts.threshold} of their shares open a secret"
    )


def protection(summary: Summary, name: str) -> str:
    """What stands between the coordinator and a site's update of a component; a dash where sites upload none."""
    facts = summary.summed.get(name)
    masked = facts is not None and facts.floor is not None
    if summary.secagg.mode == "on" and not masked:
        return formats.NOTHING
    private = void(summary) is None
    if not masked or (facts is not None and facts.dp_only):
        return "DP only" if private else "nothing"
    return "masks and DP" if private else "masks only"


def seen_by_server(summary: Summary) -> str:
    """What the coordinator sees of the sites, masks and lowered floors considered."""
    if summary.secagg.mode == "off":
        return "Every site's own update, who took part, message sizes and times."
    alone = [name for name, floor in summary.dp_only.items() if floor == 1]
    updates = f"Of {formats.listed(alone)}, a single site's own update too" if alone else "Not one site's update"
    return (
        "The sum of the contributors' updates per component, who took part and who dropped out, "
        f"message sizes and times. {updates}."
    )


def _masks(summary: Summary) -> list[tuple[str, str]]:
    if summary.secagg.mode == "off":
        return []
    server = "semi-malicious" if is_k_regular(summary) else "malicious"
    text = f"They hold against a {server} coordinator"
    if summary.secagg.corrupt is not None:
        text += f" that colludes with up to {formats.plural(summary.secagg.corrupt, 'site')}"
    if summary.dp_only:
        text += f"; not for {formats.listed(list(summary.dp_only))}, which DP alone protects"
    return [("The masks", f"{text}. ε does not stand on them.")]


def _server_step(summary: Summary) -> str:
    if summary.server_step == "unverified":
        return "Unverified: sites take the model as it is sent to them."
    return (
        "Verified: every site recomputes the step from the sums that the coordinator states. That they are the sums "
        "of the masked updates cannot be checked by anybody."
    )
