"""What stands above the picture and explains it: warnings, headline figures, and the caption."""

from __future__ import annotations

import math
from collections.abc import Sequence

from secure_fed.report import formats
from secure_fed.report.notices import Notice
from secure_fed.report.page import Tile
from secure_fed.sweep import page_data
from secure_fed.sweep.contrasts import NON_PRIVATE, SINGLE_SITE
from secure_fed.sweep.page_data import Frontier, kind_name
from secure_fed.sweep.page_tables import reference_kinds
from secure_fed.sweep.price import Price
from secure_fed.sweep.record import GRID
from secure_fed.sweep.table import Results


def notices(results: Results, price: Price) -> list[Notice]:
    """What stands on top of the page: what voids a guarantee first."""
    cells, found = results.finished, []
    grid = [cell for cell in cells if cell.kind == GRID]
    void = [cell for cell in cells if cell.insecure_reproducible]
    if void:
        text = (
            f"In {_of(len(void), len(cells))} noise, sampling and rounding came from the seed "
            "(insecure_reproducible=true). Whoever knows the seed can remove them: no epsilon of these cells protects "
            "anybody."
        )
        found.append(Notice("danger", "Insecure and reproducible", text))
    off = [cell for cell in grid if cell.privacy == "off"]
    if off:
        text = (
            f"In {_of(len(off), len(grid))} of the grid updates were trained without clipping and without noise: no "
            "differential privacy, for comparison only."
        )
        found.append(Notice("danger", "Privacy is off", text))
    over = [cell for cell in cells if _is_over(cell.epsilon_spent, cell.epsilon_target)]
    if over:
        text = f"{_of(len(over), len(cells))} spent more than the epsilon that was set; see the table of all cells."
        found.append(Notice("danger", "Over budget", text))
    if price.mode == "repeat_select":
        text = (
            "The selection's guarantee covers the best model alone. This page, the scores of the other runs and even "
            "their number must not leave the consortium."
        )
        found.append(Notice("danger", "Keep this page inside", text))
    references = [cell for cell in cells if cell.privacy == "off" and cell.kind != GRID]
    if references:
        text = (
            f"{formats.plural(len(references), 'reference cell')} ran without privacy, to compare with. Nothing bounds "
            "what their models and scores reveal: they must not leave where the records are private."
        )
        found.append(Notice("notice", "References without privacy", text))
    clear = [cell for cell in grid if cell.secagg == "off"]
    if clear:
        text = f"In {_of(len(clear), len(grid))} of the grid the coordinator received every site's own update."
        found.append(Notice("notice", "Secure aggregation is off", text))
    if results.broken or results.missing:
        yet = "has not run yet" if len(results.missing) == 1 else "have not run yet"
        parts = [(len(results.broken), "broke"), (len(results.missing), yet)]
        text = formats.listed([f"{formats.plural(number, 'cell')} {what}" for number, what in parts if number])
        found.append(Notice("notice", "Not all cells are here", f"{text}. Means stand on the seeds that finished."))
    return found


def _of(some: int, every: int) -> str:
    return f"all {formats.plural(every, 'cell')}" if some == every else f"{some} of {formats.plural(every, 'cell')}"


def _is_over(spent: float | None, target: float | None) -> bool:
    return spent is not None and target is not None and spent > target * (1 + 1e-9)


def tiles(results: Results, picture: Frontier, price: Price) -> list[Tile]:
    """The headline figures."""
    metric, total = results.manifest.objective, len(results.finished) + len(results.broken) + len(results.missing)
    absent = [(len(results.broken), "broken"), (len(results.missing), "not run")]
    left = ", ".join(f"{number} {what}" for number, what in absent if number)
    found = [Tile("Cells finished", f"{formats.count(len(results.finished))} of {formats.count(total)}", left)]
    private = [group for group in picture.grid if group.cells[0].privacy == "dp"]
    for label, groups in [
        ("Best with privacy", private),
        ("Best without privacy", [group for group in picture.references if group.kind == NON_PRIVATE]),
        ("Best site alone", [group for group in picture.references if group.kind == SINGLE_SITE]),
    ]:
        scored = [
            (mean, group)
            for group in groups
            if (mean := group.interval(metric, results.manifest.confidence)) is not None
        ]
        if scored:
            mean, group = max(scored, key=lambda pair: pair[0].mean)
            found.append(Tile(label, formats.score(mean.mean), page_data.settings(group.factors)))
    spent = "?" if price.composed is None else formats.epsilon(price.composed)
    at = f"all {formats.plural(price.runs, 'run')} together" + (
        f", δ = {formats.small(price.delta)}" if price.delta is not None else ""
    )
    if price.composed == math.inf and price.composed_private is not None and math.isfinite(price.composed_private):
        at = f"{formats.epsilon(price.composed_private)} without the runs that were not private"
    if price.composed is None:
        at = "not established"
    found.append(Tile("ε of the whole sweep", spent, at))
    if not results.finished:
        return found
    cpu = sum(cell.cpu_s for cell in results.finished)
    wall = sum(cell.wall_s for cell in results.finished) / len(results.finished)
    found.append(Tile("Processor time", formats.duration(cpu), f"{formats.duration(wall)} a cell on average"))
    return found


def caption(results: Results, picture: Frontier) -> list[str]:
    """What the marks of the picture mean, so that nobody has to guess."""
    layout, manifest = picture.layout, results.manifest
    share, repeated = f"{page_data.percent(manifest.confidence):g} %", "drawn runs" if manifest.draws else "seeds"
    mark = f"Large marks are means over {repeated}, small dots single runs (moved sideways where they would overlap)."
    drawn, lines = ("band", "Lines join means; what lies between was not run. ") if layout.joined else ("whisker", "")
    bands = (
        f"{lines}A {drawn} is the {share} interval of the mean (Student's t over {repeated}); a hollow mark stands on "
        f"one, and has none. Few {repeated} make wide {drawn}s, which are cut at the frame."
    )
    text = [mark, bands]
    kinds = reference_kinds(picture)
    if any(group.x is None for group in picture.references):
        names = [kind_name(k) for k in kinds if any(g.x is None and g.kind == k for g in picture.references)]
        text.append(f"In the column on the right, and as faint lines: {formats.listed(names)}.")
    if any(group.x is not None for group in picture.references):
        names = [kind_name(k) for k in kinds if any(g.x is not None and g.kind == k for g in picture.references)]
        look = "Grey, dashed" if layout.joined else "Bars"
        text.append(f"{look}: {formats.listed(names)}.")
    if layout.x == page_data.EPSILON:
        text.append(
            "Along the axis is the ε that each site allowed a run as a whole; what its ledgers say was spent, at the "
            "site that spent most, is in the pop-up and in the tables."
        )
    if _explains_ownership(layout.panels, layout.places):
        text.append("Ownership a:b:c: sites that hold the first modality only, the second only, and both.")
    return text


def _explains_ownership(names: Sequence[str], places: Sequence[Sequence[object]]) -> bool:
    if "federation.ownership" not in names:
        return False
    index = list(names).index("federation.ownership")
    return all(str(place[index]).replace(":", "").isdigit() for place in places)
