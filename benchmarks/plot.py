"""The results as a picture: ratios to the peers, and how cost grows."""

from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

TARGETS = {"sft": 3, "reward": 3, "dpo": 3, "grpo": 5, "ppo": 5, "sample, 64 rows": 4, "sample, 1 rows": 3}


def draw(results: dict[str, Any], path: Path) -> None:
    curves = [
        (of, what, list(points))
        for (of, what), points in groupby(results.get("growth", []), lambda point: (point["of"], point["what"]))
    ]
    figure, axes = plt.subplots(1, 1 + len(curves), figsize=(6 + 3.2 * len(curves), 4.5), squeeze=False)
    rows = results["rows"]
    bars, labels = axes[0][0], [f"{row['work']}: {row['peer']} {row['version'].split()[-1]}" for row in rows]
    medians = [row["ratio"]["median"] for row in rows]
    spread = [[m - row["ratio"]["min"], row["ratio"]["max"] - m] for m, row in zip(medians, rows, strict=True)]
    bars.barh(labels, medians, xerr=list(zip(*spread, strict=True)) or None, color="#4c78a8")
    for place, row in enumerate(rows):
        target = 1 if row["peer"] == "llama.cpp" else TARGETS[row["work"]]
        bars.plot([target, target], [place - 0.4, place + 0.4], color="#e45756")
    bars.axvline(1, color="grey", linewidth=0.8)
    bars.invert_yaxis()
    bars.set_xlabel("times as fast as the peer (red: the target)")
    for axis, (of, what, points) in zip(axes[0][1:], curves, strict=True):
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
    figure.tight_layout()
    figure.savefig(path)
