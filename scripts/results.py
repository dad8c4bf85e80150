"""Write docs/results.md from the folders of finished sweeps; no figure on the page has another source.

    python scripts/results.py sweeps/methods sweeps/link sweeps/paired_sites sweeps/icu sweeps/fin_ablation \\
        --costs costs.json

The same folders give the same bytes. A study that is not given stands on the page as not run; a sweep that is not
complete is refused without --partial.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from results_figures import curves, gain_curves, rate_curves
from results_findings import against_lines, aim_lines, guide_lines, pays_lines, variant_lines
from results_studies import BASELINE, ROW_FACTOR, Study, Table, read_studies
from results_tables import (
    command_of,
    contributor_lines,
    cost_lines,
    matrix_lines,
    paper_cost_lines,
    phase_lines,
    price_lines,
    quality_lines,
    row_command,
    score_lines,
    table_lines,
)

from secure_fed.errors import DataError, SecureFedError
from secure_fed.report import formats

IMPUTERS = (
    "uniform_fill", "mean_fill", "ridge", "fin", "fin_paper", "fin_uncertainty", "vae", "car_mfl", "generative",
)  # fmt: skip
"""What fills a missing feature with something; modality dropout trains for its absence instead."""
IN_CURVES = ("zero_fill", "modality_dropout", "ridge", "fin", "fin_uncertainty", "car_mfl")
MATRICES = ("link", "paired_sites")
"""Studies of many settings: a table a view with a row a setting, instead of a table a setting."""
AIMED = ("methods", "icu")
"""Studies that the aims for FIN are held against."""
STUDIES = {
    "methods": "Every method, generated chest films and reports",
    "link": "How strongly the report follows the film",
    "paired_sites": "How many sites have both, and how large sites are",
    "icu": "ICU stays, real (PhysioNet / CinC Challenge 2012, set A)",
    "fin_ablation": "FIN's translators, one thing changed at a time",
}


def page(studies: Mapping[str, Study], costs: Mapping[str, object] | None, figures: Path) -> tuple[str, dict[str, str]]:
    """The page as text, and its pictures by file name; `figures`: their folder as the page names it."""
    pictures: dict[str, str] = {}
    lines = [
        "# Results",
        "",
        "Written by `scripts/results.py` from sweeps' folders; edit nothing here.",
        "",
        _READING,
        *_overview(studies),
    ]
    for name, title in STUDIES.items():
        lines += [f"## {title}", ""]
        if name not in studies:
            lines += [f"Not run: `secure-fed sweep sweep={name}` was not given to the script.", ""]
            continue
        lines += _study(studies[name])
        found = _pictures(studies[name])
        pictures |= found
        for file in found:
            lines += [f"![{file.removesuffix('.svg').replace('-', ' ')}]({figures / file})", ""]
    lines += _pays(studies)
    lines += _costs(studies, costs)
    lines += _protection(studies)
    return "\n".join(lines).rstrip() + "\n", pictures


_READING = f"""\
Every cell is a whole run: Flower messages, DP-SGD at each site, masked sums, ledgers. Scores are macro AUROC on the
coordinator's hold-out, with everything present and with each modality taken from every record. ε is each site's own,
over all phases and rounds, add-or-remove one record; "ε spent" is the most that a cell's ledgers hold.

Differences to `{BASELINE}` are paired over seeds, ± one standard error; p is Student's, by Holm over all differences of
its table. A difference is bold, and called a gain or a loss, only where its interval leaves out 0. A seed fixes data,
split and initial weights; the noise is the operating system's and never repeats.

Learning rates, clip norms and methods' defaults were chosen on other runs, of other seeds, and are not charged: read
the tables as comparisons, not as releases.
"""

_QUALITY = """\
On hold-out records that have everything. Cosine misleads: a constant mean scores high already. An MSE over the variance
of 1 is the constant mean's; a rank of 0.5 is chance, 0 the best.
"""

_RULE = f"""\
Each sentence follows from the tables by one rule: `gains` and `loses` where the interval of the paired differences to
`{BASELINE}` leaves out 0, else `no visible difference`, which is not evidence of none.
"""

_CONTRIBUTING = """\
A component is summed over the sites that own all modalities in its name, and its sum is opened only where at least
`floor` of them survived. Everything opened carries the noise that is charged to the ledgers; masks hide single updates
in the sum on top of that.
"""


def _overview(studies: Mapping[str, Study]) -> list[str]:
    rows = []
    for name in STUDIES:
        study = studies.get(name)
        if study is None:
            rows.append([f"`{name}`", "not run", *[formats.NOTHING] * 5])
            continue
        results = study.results
        cells = f"{len(results.finished)} of {len(results.finished) + len(results.broken) + len(results.missing)}"
        code, command = f"`{results.manifest.code}`", f"`{command_of(study)}`"
        rows.append(
            [
                f"`{name}`",
                cells if study.complete else f"{cells}, incomplete",
                results.manifest.data,
                formats.spans(study.seeds),
                code,
                f"{study.hours:.2f}" if study.hours < 10 else f"{study.hours:.0f}",
                command,
            ]
        )
    lines = table_lines(["study", "cells", "data", "seeds", "code", "hours", "command"], rows, text=7)
    lines += ["Hours are the cells' wall time added up, a thread each: so many workers share it.", ""]
    if len({study.results.manifest.code for study in studies.values()}) > 1:
        lines += ["**The sweeps were run by different versions of the code: they are not comparable.**", ""]
    if any(cell.insecure_reproducible for study in studies.values() for cell in study.results.finished):
        lines += ["**Some cells ran with `insecure_reproducible=true` and give no privacy.**", ""]
    return lines


def _study(study: Study) -> list[str]:
    lines = _matrices(study) if study.name in MATRICES else _by_setting(study)
    if study.name not in MATRICES and (price := price_lines(study)):
        lines += ["### What privacy costs", "", *price]
    lines += ["### What each phase cost", "", *phase_lines(study)]
    quality = [(table, quality_lines(study, table)) for table in _shown(study)]
    if study.name not in MATRICES and any(found for _, found in quality):
        lines += ["### Imputed features against the real ones", "", _QUALITY]
        for table, found in quality:
            if found:
                lines += [f"**{table.setting}**", "", *found]
    return lines


def _by_setting(study: Study) -> list[str]:
    lines = []
    for epsilon in study.budgets:
        for table in study.at(epsilon):
            last = table.rows[-1].name
            lines += [f"### {table.setting}", "", *score_lines(study, table)]
            lines += [f"One row, such as `{last}`: `{row_command(study, table, last)}`", ""]
    return lines


def _matrices(study: Study) -> list[str]:
    lines = []
    for epsilon in study.budgets:
        tables = study.at(epsilon)
        for view in study.views:
            privacy = tables[0].setting.privacy
            lines += [f"### {privacy}, {view.title}".replace("# without", "# Without"), ""]
            lines += matrix_lines(study, tables, view)
        lines += [f"One row: `{row_command(study, tables[0], tables[0].rows[-1].name)}`", ""]
    return lines


def _shown(study: Study) -> list[Table]:
    """The tables at the largest budget and without privacy."""
    private = [epsilon for epsilon in study.budgets if epsilon is not None]
    return [table for epsilon in (None, *private[:1]) for table in study.at(epsilon)]


def _pictures(study: Study) -> dict[str, str]:
    """File name -> SVG: differences over the link, and scores over missing rates."""
    found: dict[str, str | None] = {}
    if study.name == "link":
        for epsilon in study.budgets:
            for view in study.views:
                lines = gain_curves(study, study.at(epsilon), "data.link", view.metric)
                privacy = study.at(epsilon)[0].setting.privacy
                title = f"AUROC minus {BASELINE} against the link, {view.title}, {privacy}"
                name = _file(f"link {view.title} {privacy}")
                found[name] = curves(title, "link", f"AUROC − {BASELINE}, {view.title}", lines, zero=True)
    if study.name == "methods":
        for table in _shown(study):
            title = f"AUROC against the share of records that lack a modality, {table.setting}"
            lines = rate_curves(study, table, IN_CURVES)
            axis = "share with one modality missing"
            found[_file(f"rates {table.setting}")] = curves(title, axis, "AUROC", lines, zero=False)
    return {name: picture for name, picture in found.items() if picture is not None}


def _file(title: str) -> str:
    words = re.sub(r"[^a-z0-9.]+", "-", title.lower().replace("ε = ", "epsilon-").replace(":", "-"))
    return f"{words.strip('-')}.svg"


def _pays(studies: Mapping[str, Study]) -> list[str]:
    lines = ["## When imputation pays", "", _RULE]
    if guide := guide_lines(studies.values(), (*IMPUTERS, "modality_dropout")):
        lines += [f"Visible gains (↑) and losses (↓) against `{BASELINE}`, over all settings and views:", "", *guide]
    told = False
    for name, study in studies.items():
        found = variant_lines(study) if name == "fin_ablation" else pays_lines(study, IMPUTERS)
        if found:
            told = True
            lines += [f"### {STUDIES[name]}", "", *found]
        if beside := against_lines(study, "fin", "modality_dropout"):
            lines += ["FIN against modality dropout, which imputes nothing:", "", *beside]
    if not told:
        lines += ["No study was run that could say it.", ""]
    aims = {name: aim_lines(studies[name]) for name in AIMED if name in studies}
    if any(aims.values()):
        lines += ["### The aims", ""]
        for name, found in aims.items():
            lines += [f"{STUDIES[name]}:", "", *found] if found else []
    return lines


def _costs(studies: Mapping[str, Study], costs: Mapping[str, object] | None) -> list[str]:
    lines = ["## What a run costs", ""]
    for name, study in studies.items():
        table = next(iter(_shown(study)[-1:]), None)
        if name in ("methods", "icu") and table is not None and (found := cost_lines(study, table)):
            lines += [
                f"{STUDIES[name]}, {table.setting}. FLOPs are of one record, bytes of a site and round, seconds of a "
                "round beside other cells.",
                "",
                *found,
            ]
    lines += ["### At the paper's sizes", ""]
    if costs is None:
        return [*lines, "Not run: `python benchmarks/costs.py --json costs.json`, then `--costs costs.json`.", ""]
    return [*lines, *paper_cost_lines(costs)]


def _protection(studies: Mapping[str, Study]) -> list[str]:
    lines = ["## Who contributes to what", ""]
    told = [study for name, study in studies.items() if name in ("methods", "icu")]
    if not told:
        return [*lines, "Not run: neither `methods` nor `icu` was given.", ""]
    lines.append(_CONTRIBUTING)
    for study in told:
        lines += [f"### {STUDIES[study.name]}", "", *contributor_lines(study)]
    return lines


def require_complete(studies: Mapping[str, Study]) -> None:
    """Raise DataError naming the sweeps with broken or missing cells, and how to go on with them."""
    for study in studies.values():
        if not study.complete:
            found = study.results
            raise DataError(
                f"{found.folder} is not complete: {len(found.finished)} cells have finished, {len(found.broken)} are "
                f"broken and {len(found.missing)} missing. Go on with `secure-fed sweep resume={found.folder}`, or "
                "give --partial, which the page then says."
            )


def read_costs(path: Path) -> Mapping[str, object]:
    """What benchmarks/costs.py wrote; raises DataError where it is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not what `python benchmarks/costs.py --json {path}` writes: {error}.") from error
    if not isinstance(found, dict) or found.get("schema") != "secure_fed.costs/1":
        raise DataError(f"{path} is not what `python benchmarks/costs.py --json {path}` writes.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its pictures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", nargs="+", type=Path, help=f"sweeps' folders, any of {', '.join(ROW_FACTOR)}")
    parser.add_argument("--costs", type=Path, help="the file that benchmarks/costs.py --json wrote")
    parser.add_argument("--output", type=Path, default=Path("docs/results.md"))
    parser.add_argument("--partial", action="store_true", help="accept sweeps with cells that have not finished")
    given = parser.parse_args(arguments)
    try:
        studies = read_studies(given.sweeps)
        if not given.partial:
            require_complete(studies)
        text, pictures = page(studies, read_costs(given.costs) if given.costs else None, Path("figures"))
    except SecureFedError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    folder = given.output.parent / "figures"
    for name, picture in pictures.items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(picture, encoding="utf-8")
    given.output.write_text(text, encoding="utf-8")
    print(f"{given.output}: studies {', '.join(studies)}; {formats.plural(len(pictures), 'figure')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
