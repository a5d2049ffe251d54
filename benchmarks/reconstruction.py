"""Hidden regions of DLPFC: the trained network against interpolation, on the section it was not trained on.

    STIMG_DATA_DIR=../shared/data python benchmarks/reconstruction.py [--config tiny] [--max-epochs 20]

Non-overlapping square regions of 2, 4, 8 and 14 sites (40, 20, 6 and 3 of them at most; 3 draws) are hidden from the
network and from the baselines alike; judged are the 2,000 selected genes of the section that the network knows, on
log-normalised expression of the hidden spots. Baselines: mean of the 6 nearest seen spots, Gaussian kernel (1.5
pitches), the same in 30 principal components, the slide's mean over seen spots, and zero.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from dlpfc import SECTIONS, load_sections, trained_model

import stimg
from stimg._slide import log_normalise

REGIONS = {2: 40, 4: 20, 8: 6, 14: 3}
DRAWS = 3


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/reconstruction.md"))
    args = parser.parse_args()
    sections = load_sections()
    rows = []
    for test in SECTIONS:
        section = sections[test]
        model = trained_model(sections, test, config=args.config, max_epochs=args.max_epochs, seed=0)
        judged = section.var_names.isin(model.genes) & (section.var["stimg_weight"].to_numpy() > 0)
        measured = log_normalise(section.X, model.card["target_sum"])[:, np.flatnonzero(judged)]
        for size, count in REGIONS.items():
            for draw in range(DRAWS):
                hidden = stimg.metrics.hide_regions(section.obsm["lattice"], size, n_regions=count, rng=draw)
                truth = measured[np.flatnonzero(hidden)]
                stimg.tl.reconstruct(section, model, hidden=hidden)
                filled = {"stimg": section.layers["stimg"][np.ix_(hidden, judged)]}
                for method in ("nearest", "gaussian", "pca", "zero"):
                    filled[method] = stimg.metrics.interpolate_hidden(
                        measured, section.obsm["spatial"], hidden, method=method
                    )
                mean = np.asarray(measured[np.flatnonzero(~hidden)].mean(0)).ravel()
                filled["slide mean"] = np.tile(mean, (truth.shape[0], 1))
                for method, values in filled.items():
                    scores = stimg.metrics.reconstruction_scores(truth, values)
                    kept = {name: scores[name] for name in ("mse", "mae", "pearson")}
                    rows.append({"size": size, "method": method, "section": test, **kept})
    table = pd.DataFrame(rows).groupby(["size", "method"], sort=False)[["mse", "mae", "pearson"]].mean().reset_index()
    command = f"python benchmarks/reconstruction.py --config {args.config} --max-epochs {args.max_epochs}"
    text = f"# Hidden regions of DLPFC\n\n`{command}` (stimg {stimg.__version__})\n\n{__doc__.split(chr(10), 4)[4]}"
    text += f"\nMean over the three sections and {DRAWS} draws:\n\n{table.round(4).to_markdown(index=False)}\n"
    args.out.write_text(text)
    print(table)


if __name__ == "__main__":
    main()
