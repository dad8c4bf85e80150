"""How much of the label each modality says alone, and both together: logistic regression, split by patient.

    python benchmarks/modalities.py                               # the synthetic chest films
    python benchmarks/modalities.py --physionet2012 PATH          # the real stays, from a path

Non-private, central, and meant as a ruler for the data: no federation, no method of this package takes part.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from secure_fed.data import Records, load
from secure_fed.data.config import PhysioNet2012Config, SyntheticCxrConfig
from secure_fed.data.partition import split_by_unit
from secure_fed.data.vocabulary import ngram_counts

Features = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


def features_of(records: Records, modality: str) -> Features:
    """Plain features [n, F]: images pooled to 16 x 16 (mean, and mean absolute gradient), text as n-grams."""
    value = np.asarray(records.values[modality])
    kind = records.schema.modality(modality).kind
    if kind == "text":
        return ngram_counts(value).astype(np.float64)
    if kind == "tabular":
        return value.astype(np.float64)
    films = value[:, 0]
    films = (films - films.mean(axis=(1, 2), keepdims=True)) / films.std(axis=(1, 2), keepdims=True)
    down, across = np.abs(np.diff(films, axis=1)), np.abs(np.diff(films, axis=2))
    maps = [films[:, :-1, :-1], down[:, :, :-1], across[:, :-1, :]]
    pooled = [_pool(grid, cells) for grid, cells in zip(maps, (16, 8, 8), strict=True)]
    return np.concatenate(pooled, axis=1).astype(np.float64)


def _pool(maps: npt.NDArray[np.float32], cells: int) -> npt.NDArray[np.float32]:
    edges = np.linspace(0, maps.shape[1], cells + 1).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(maps, edges, axis=1), edges, axis=2)
    return np.asarray(sums.reshape(len(maps), -1) / (maps.shape[1] / cells) ** 2, dtype=np.float32)


def scores_of(x: Features, y: Features, train: Index, c: float) -> Features:
    """Logits [n, L] of an L2-regularised logistic regression a label, fitted on the records `train`."""
    scaled = StandardScaler().fit(x[train]).transform(x)
    columns = []
    for label in range(y.shape[1]):
        model = LogisticRegression(C=c, max_iter=300).fit(scaled[train], y[train, label])
        columns.append(model.decision_function(scaled))
    return np.column_stack(columns)


@dataclass(frozen=True)
class Measured:
    """AUROC [L] by feature block, and the share of one modality's scores that the other explains."""

    auroc: dict[str, Features]
    explained: dict[str, float]


def measure(records: Records, seed: int, c: float) -> Measured:
    """One split by patient: each modality alone, both, and one's scores guessed by ridge from the other."""
    train, test = split_by_unit(records, 0.2, seed)
    y = records.labels.astype(np.float64)
    blocks = {name: features_of(records, name) for name in records.schema.names}
    first, second = blocks
    scores = {name: scores_of(x, y, train, c) for name, x in blocks.items()}
    scores["both"] = scores_of(np.concatenate(list(blocks.values()), axis=1), y, train, c)
    auroc = {
        name: np.array([roc_auc_score(y[test, k], score[test, k]) for k in range(y.shape[1])])
        for name, score in scores.items()
    }
    explained = {
        f"{source} -> {target}": explained_share(blocks[source], scores[target], train, test)
        for source, target in ((first, second), (second, first))
    }
    return Measured(auroc, explained)


def explained_share(x: Features, scores: Features, train: Index, test: Index) -> float:
    """1 - residual / variance on the test records of ridge from x to the standardised scores: what an imputer
    can at best hope to fill in, seen through a linear map."""
    source = StandardScaler().fit(x[train]).transform(x)
    target = StandardScaler().fit(scores[train]).transform(scores)
    guess = Ridge(alpha=3000.0).fit(source[train], target[train]).predict(source[test]).reshape(len(test), -1)
    rest = ((target[test] - guess) ** 2).sum()
    return float(1.0 - rest / ((target[test] - target[train].mean(axis=0)) ** 2).sum())


def main() -> None:
    """Prints the table for one data set."""
    parser = argparse.ArgumentParser(description="How much of the label each modality says.")
    parser.add_argument("--physionet2012", type=Path, help="the released folder or set-a.tar.gz")
    parser.add_argument("--splits", type=int, default=4)
    parser.add_argument("--patients", type=int, default=4000)
    options = parser.parse_args()
    config: PhysioNet2012Config | SyntheticCxrConfig = SyntheticCxrConfig(patients=options.patients)
    c = 1e-3
    if options.physionet2012:
        config, c = PhysioNet2012Config(root=options.physionet2012), 3e-3
    results: list[Measured] = []
    for seed in range(options.splits):
        start = time.perf_counter()
        records = load(config, seed).records
        loaded = time.perf_counter() - start
        results.append(measure(records, seed, c))
        macro = ", ".join(f"{name} {score.mean():.3f}" for name, score in results[-1].auroc.items())
        print(f"seed {seed}: {len(records)} records in {loaded:.1f} s; macro AUROC {macro}", flush=True)
    _print_table(records, results)


def _print_table(records: Records, results: list[Measured]) -> None:
    names = list(results[0].auroc)
    mean = {name: np.mean([result.auroc[name] for result in results], axis=0) for name in names}
    macros = {name: [result.auroc[name].mean() for result in results] for name in names}
    print(f"\n{'AUROC, mean of the splits':28s}" + "".join(f"{name:>9s}" for name in names))
    for i, label in enumerate(records.schema.labels):
        prevalence = records.labels[:, i].mean()
        print(f"{label:28s}" + "".join(f"{mean[name][i]:9.3f}" for name in names) + f"   ({prevalence:.1%})")
    print(f"{'macro':28s}" + "".join(f"{np.mean(macros[name]):9.3f}" for name in names))
    spread = {name: np.std(macros[name], ddof=min(1, len(results) - 1)) for name in names}
    print(f"{'deviation over splits':28s}" + "".join(f"{spread[name]:9.3f}" for name in names))
    for way in results[0].explained:
        share = np.mean([result.explained[way] for result in results])
        print(f"{way}: explains {share:.1%} of the other's scores (held-out patients)")


if __name__ == "__main__":
    main()
