"""A plan as a person reads it: a table of phases for each kind of site, and what all of it costs."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from secure_fed.planning import GroupView, PhaseView, PlanView

_SHOWN_ROUNDS = 8


def render_plan(view: PlanView, console: Console) -> None:
    """Print each group of sites, the warnings, and the hash that an owner approves."""
    per = view.unit if view.unit == "record" else f"patient (at most {view.max_records_per_unit} records each)"
    console.print(f"[bold]{escape(view.method)}[/]: what each site would spend, per {per}, {view.relation}")
    for group in view.groups:
        _group(group, view.unit, console)
    for site, reason in view.refused.items():
        console.print(f"[bold red]{escape(site)} refuses[/]: {escape(reason)}")
    if view.budget_shares:
        parts = ", ".join(f"{escape(name)} {share:.1%}" for name, share in view.budget_shares.items())
        console.print(
            f"privacy.budget_shares: of what the schedule spends, by steps times (q / sigma) squared: {parts}. A site "
            "without some of these phases spends all of its epsilon on the others"
        )
    for text in view.warnings:
        console.print(f"[yellow]warning: {escape(text)}[/]")
    console.print(f"\nplan hash  {view.plan_hash}  (approved_plans in policy.yaml)")
    console.print(f"data set   {escape(view.data_set)}")


def _group(group: GroupView, unit: str, console: Console) -> None:
    title = f"{escape(_ranges(group.sites))}: {escape(' + '.join(group.owns))}, declared N {_span(group.declared_n)}"
    if not group.phases:
        console.print(f"{title}: trains and releases nothing\n")
        return
    table = Table(title=title, title_justify="left")
    for heading in ("phase", "C", "sigma", "q", "steps", "rounds", "epsilon alone", "noise / signal", "rounds left"):
        table.add_column(heading, justify="left" if heading == "phase" else "right", no_wrap=heading == "phase")
    for phase in group.phases:
        table.add_row(*_cells(phase))
    console.print(table)
    console.print(
        f"epsilon {group.epsilon:.4f} at delta {group.delta:g} with the spare rounds, {group.scheduled:.4f} without; "
        f"replace-one {group.replace_one:.4f}"
    )
    if unit == "record":
        known = ", ".join(f"{k}: {_figure(value)}" for k, value in group.patients.items())
        console.print(f"epsilon of a patient by his number of records: 1: {group.epsilon:.2f}, {known}")
    console.print("epsilon(delta): " + ", ".join(f"{value:.2f} at {delta:g}" for delta, value in group.curve))
    console.print(f"after round: {_rounds(group.by_round)}")
    console.print(
        f"budget: {group.taken:.4f} taken before, {group.admitted:.4f} with this run in full, the owner's limit is "
        f"{group.limit:g}\n"
    )


def _cells(phase: PhaseView) -> list[str]:
    return [
        escape(phase.name),
        f"{phase.max_grad_norm:g}",
        f"{phase.noise_multiplier:.4f}",
        f"{phase.sample_rate:g}",
        str(phase.steps),
        f"{phase.rounds} + {phase.spare}",
        f"{phase.epsilon:.4f}",
        "-" if phase.noise_to_signal is None else f"{phase.noise_to_signal:.2f}",
        str(phase.rounds_left),
    ]


def _rounds(curve: tuple[float, ...]) -> str:
    """A few rounds of the curve, first and last among them."""
    last = len(curve) - 1
    chosen = sorted({round(last * i / (_SHOWN_ROUNDS - 1)) for i in range(_SHOWN_ROUNDS)}) if last > 0 else [0]
    return ", ".join(f"{i + 1}: {curve[i]:.2f}" for i in chosen)


def _span(numbers: tuple[int, int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]} to {numbers[1]}"


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.1f}"


def _ranges(sites: tuple[str, ...]) -> str:
    return ", ".join(sites) if len(sites) <= 4 else f"{sites[0]}, {sites[1]} ... {sites[-1]} ({len(sites)} sites)"
