"""The results as a picture: ratios to the peers, and how cost grows."""

from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from data import SMOLLM2

# Of SmolLM2; for other models there are none.
TARGETS = {"sft": 3, "reward": 3, "dpo": 3, "grpo": 5, "ppo": 5, "sample, 64 rows": 4, "sample, 1 rows": 3}


def draw(results: dict[str, Any], path: Path) -> None:
    models = dict.fromkeys(row["model"] for row in results["rows"])
    ratios = [partial(_ratios, model, [row for row in results["rows"] if row["model"] == model]) for model in models]
    growth = [
        partial(_curve, of, what, list(points))
        for (of, what), points in groupby(results.get("growth", []), lambda point: (point["of"], point["what"]))
    ]
    figure = plt.figure(figsize=(18, 9), layout="constrained")
    for part, fills in zip(figure.subfigures(2), (ratios, growth), strict=True):
        for number, fill in enumerate(fills, 1):
            fill(part.add_subplot(1, len(fills), number))
    figure.savefig(path)
    plt.close(figure)


def _ratios(model: str, rows: list[dict[str, Any]], axis: Axes) -> None:
    labels = [f"{row['work']}: {row['peer']} {row['version'].split()[-1]}" for row in rows]
    medians = [row["ratio"]["median"] for row in rows]
    spread = [[m - row["ratio"]["min"], row["ratio"]["max"] - m] for m, row in zip(medians, rows, strict=True)]
    axis.barh(labels, medians, xerr=list(zip(*spread, strict=True)), color="#4c78a8")
    if model == SMOLLM2:
        for place, row in enumerate(rows):
            target = 1 if row["peer"] == "llama.cpp" else TARGETS[row["work"]]
            axis.plot([target, target], [place - 0.4, place + 0.4], color="#e45756")
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.invert_yaxis()
    axis.set_title(model)
    axis.set_xlabel("times as fast as the peer" + (" (red: the target)" if model == SMOLLM2 else ""))


def _curve(of: str, what: str, points: list[dict[str, Any]], axis: Axes) -> None:
    places, rates = [point["x"] for point in points], [point["y"] for point in points]
    axis.plot(places, rates, marker="o")
    axis.set_xscale("log", base=2)
    axis.set_xticks(places, [f"{place:.3g}" for place in places])
    axis.minorticks_off()
    if max(rates) > 20 * min(rates):
        axis.set_yscale("log")
    else:
        axis.set_ylim(bottom=0)
    axis.set_xlabel(what)
    axis.set_ylabel(f"{of}, tokens/s")
