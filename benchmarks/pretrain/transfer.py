"""Expert labels carried from one slide to another: pretrained weights against single spots and cheap blurs.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/transfer.py patch=WEIGHTS [patch=WEIGHTS spot=WEIGHTS ...]

k-NN (k = 15) and logistic regression are trained on the labels of one slide and tested on another. Tested are the
slides marked `held_out` in `slides.toml`, which the weights never saw, each with every other slide of its data set that
has labels as the source: cortex 2, heart 5 each, breast 4 each, STARmap 1; the olfactory bulb has no second slide.
Weights under one name are training seeds of one recipe; "patch" and "spot" are the same network, slides and labels,
with windows of 16 x 16 sites (20 minutes) or single spots (`train.py judged --unit spot --minutes 12`: eight epochs,
the last two without a better validation loss) as samples. Features of weights are `.obsm["X_stimg"]`. Baselines are
components of the slides of a data set together, from the selected genes that all of them have (30, z-scored within each
slide), the same averaged over the 18 nearest spots, and 20 with their means over rings of 1, 2 and 3 pitches. A row is
the mean over the sources of a slide (and training seeds).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from train import PARTS, read_slides

import stimg

sys.path.append(str(Path(__file__).parents[1]))
from baselines import add_shared_baselines

BASELINES = ("PCA", "PCA + 18 nearest", "PCA 20 + rings")


def carry(entries: list[dict], method: str, key: str) -> Iterator[dict]:
    """Scores of the labels of every slide but itself on every slide that is held out."""
    for test in entries:
        for source in entries if test.get("held_out") else ():
            if source is test:
                continue
            row = {"slide": test["file"], "source": source["file"], "method": method}
            sides = [(entry["adata"].obsm[key], entry["adata"].obs["domain"]) for entry in (source, test)]
            for name in ("knn", "logistic"):
                scores = stimg.metrics.transfer_probe(*sides[0], *sides[1], method=name)
                row |= {name: scores["accuracy"], f"{name} F1": scores["macro_f1"]}
            yield row


def main() -> None:
    """Carry labels over and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", nargs="+", metavar="NAME=WEIGHTS")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transfer.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    labelled = [entry for entry in read_slides(*PARTS["all"]) if entry.get("labels")]
    rows: list[dict] = []
    for folder in dict.fromkeys(entry["file"].split("/")[0] for entry in labelled):
        entries = [entry for entry in labelled if entry["file"].startswith(f"{folder}/")]
        if len(entries) == 1:
            continue
        add_shared_baselines([entry["adata"] for entry in entries])
        for method in BASELINES:
            rows += carry(entries, method, f"{method}, shared")
        for name, path in (weights.split("=", 1) for weights in args.weights):
            for entry in entries:
                stimg.tl.embed(entry["adata"], path)
            rows += carry(entries, name, "X_stimg")
        print(pd.DataFrame(rows).drop(columns="source").groupby(["slide", "method"], sort=False).mean().round(3))
    scores = pd.DataFrame(rows).drop(columns="source")
    table = scores.groupby(["slide", "method"], sort=False).mean().reset_index()
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(slide="mean")
    table = pd.concat([table, mean]).round(3)
    text = "# Labels carried from slide to slide\n\n"
    text += f"`python benchmarks/pretrain/transfer.py {' '.join(args.weights)}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
