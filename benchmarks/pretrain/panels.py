"""What is left of the domains when a slide has few genes: pretrained weights on random parts of the panel.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/panels.py WEIGHTS

The labelled slides marked `held_out` in `slides.toml`, with all genes, and with 500 and 300 random ones of the 2,000
most variable (3 draws); slides with fewer than 500 genes are left out.
Scores and methods as in `judge.py`.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from judge import judge
from train import read_slides

import stimg

PANELS = (500, 300)
DRAWS = 3


def main() -> None:
    """Judge the weights on smaller and smaller panels and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/panels.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for entry in read_slides("held_out"):
        slide = entry["adata"]
        if not entry.get("labels") or slide.n_vars < PANELS[0]:
            continue
        selected = np.flatnonzero(slide.var["stimg_weight"] > 0)
        panels = [("all", None), *((size, draw) for size in PANELS for draw in range(DRAWS))]
        for size, draw in panels:
            part = slide
            if draw is not None:
                part = slide[:, np.random.default_rng(draw).choice(selected, size, replace=False)].copy()
            stimg.tl.embed(part, args.weights)
            for method, key in (("stimg", "X_stimg_slide"), ("network alone", "X_stimg")):
                rows.append({"slide": entry["file"], "method": method, "genes": size, **judge(part, key)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).groupby(["slide", "method", "genes"], sort=False).mean().reset_index()
    mean = table.groupby(["method", "genes"], sort=False).mean(numeric_only=True).reset_index().assign(slide="mean")
    table = pd.concat([table, mean]).round(3)
    text = f"# Small panels\n\n`python benchmarks/pretrain/panels.py {args.weights}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
