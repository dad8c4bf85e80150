"""The headline table: method x privacy on/off, paired over seeds, with standard errors.

    python benchmarks/headline.py --seeds 5                                         # the defaults: synthetic_cxr
    python benchmarks/headline.py --experiment physionet2012 --root PATH --seeds 8  # real data, 4:4:2
Each cell is a whole run through Flower messages, DP-SGD and masked sums; finished cells are kept in --out.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

METHODS = ("zero_fill", "modality_dropout", "ridge", "fin")
SETTINGS = ("off", "dp")


def overrides(arguments: argparse.Namespace, method: str, privacy: str, seed: int) -> list[str]:
    """What `secure-fed run` would be given for one cell."""
    chosen = [f"method={method}", f"privacy={privacy}"]
    if arguments.experiment != "defaults":
        chosen.append(f"experiment={arguments.experiment}")
    if arguments.root:
        chosen.append(f"data.root={arguments.root}")
    return [*chosen, f"seed={seed}", *arguments.override]


def cell(task: tuple[list[str], Path]) -> dict[str, Any]:
    """Run one cell unless its summary is there already, and return the summary."""
    chosen, folder = task
    summary = folder / "summary.json"
    if not summary.exists():
        from secure_fed.config import compose_config, freeze
        from secure_fed.engines.runner import start

        shutil.rmtree(folder, ignore_errors=True)
        start(freeze(compose_config(chosen), folder))
    loaded: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    return loaded


def scores(summary: dict[str, Any]) -> dict[str, float]:
    """AUROC by view: everything present, and each modality missing."""
    return {"both": summary["auroc_macro"]} | {
        f"no {name}": value for name, value in summary["auroc_macro_missing"].items()
    }


def mean_and_error(values: Sequence[float]) -> str:
    """Mean and its standard error over seeds."""
    if len(values) < 2:
        return f"{values[0]:+.3f}"
    return f"{statistics.mean(values):+.3f} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"


def main() -> None:
    """Run all cells, two at a time, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="data.root, for data sets that lie on disk")
    parser.add_argument("--experiment", default="defaults", help="a preset of configs/experiment, or defaults")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/headline"))
    parser.add_argument("--json", action="store_true", help="one line a cell instead of the table")
    parser.add_argument("override", nargs="*", help="further overrides for every cell")
    arguments = parser.parse_args()

    cells = [(m, p, s) for s in range(arguments.seeds) for m in arguments.methods for p in SETTINGS]
    out = arguments.out / arguments.experiment
    tasks = [(overrides(arguments, *c), out / f"{c[0]}-{c[1]}-{c[2]}") for c in cells]
    with ProcessPoolExecutor(arguments.workers) as pool:
        summaries = dict(zip(cells, pool.map(cell, tasks), strict=True))
    if arguments.json:
        for (method, privacy, seed), summary in summaries.items():
            facts = {"method": method, "privacy": privacy, "seed": seed, "epsilon_max": summary["epsilon_max"]}
            print(json.dumps({**facts, **scores(summary), "wall_s": summary["wall_s"]}))
        return
    print_table(arguments, summaries)


def print_table(arguments: argparse.Namespace, summaries: dict[tuple[str, str, int], dict[str, Any]]) -> None:
    """Means over seeds, the paired cost of privacy, and the paired gain over zero-filling."""
    seeds = range(arguments.seeds)
    first = next(iter(summaries.values()))
    views = list(scores(first))
    print(f"{first['data']}, {arguments.seeds} seeds, mean macro AUROC; differences are paired over seeds, ± s.e.\n")
    print("| method | view | privacy off | DP | DP - off | DP: method - zero_fill |")
    print("|---|---|---|---|---|---|")
    for method in arguments.methods:
        for view in views:
            off = [scores(summaries[method, "off", s])[view] for s in seeds]
            private = [scores(summaries[method, "dp", s])[view] for s in seeds]
            cost = mean_and_error([p - o for p, o in zip(private, off, strict=True)])
            gain = ""
            if method != "zero_fill" and "zero_fill" in arguments.methods:
                base = [scores(summaries["zero_fill", "dp", s])[view] for s in seeds]
                gain = mean_and_error([p - b for p, b in zip(private, base, strict=True)])
            row = f"{statistics.mean(off):.3f} | {statistics.mean(private):.3f} | {cost} | {gain}"
            print(f"| {method} | {view} | {row} |")
    epsilons = [s["epsilon_max"] for s in summaries.values() if s["epsilon_max"] is not None]
    walls = [s["wall_s"] for s in summaries.values()]
    print(f"\nlargest epsilon spent {max(epsilons):.3f}; seconds a cell: median {statistics.median(walls):.0f}")


if __name__ == "__main__":
    main()
