"""Mixtures of `stimg.tl.domains` against scikit-learn's starts and R's mclust, on the same features.

    STIMG_DATA_DIR=../shared/data python benchmarks/mixture.py WEIGHTS

On the labelled slides of all parts of the split in `pretrain/slides.toml` (the starts were chosen on those not held
out), with as many domains as labels and 15 principal components of four features: 30 components of the 2,000 most
variable genes, these averaged over the 18 nearest spots, 20 of them with their means over rings, and
`.obsm["X_stimg_slide"]` of the weights. "k-means starts" is scikit-learn's mixture with a tied covariance and ten
starts. mclust is the model EEE with its own start; it needs `Rscript`. "Agree" is the mean ARI between the three seeds
(mclust has one), seconds are those of one clustering.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mclust import mclust
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

import stimg

sys.path.append(str(Path(__file__).parent / "pretrain"))
from judge import add_baselines
from train import read_slides, split_of

FEATURES = ("PCA 30", "PCA + 18 nearest", "PCA 20 + rings", "X_stimg_slide")
SEEDS = 3
METHODS = ("stimg", "k-means starts", "mclust")


def cluster(slide: AnnData, feature: str, method: str, n_domains: int, seed: int) -> np.ndarray | None:
    """Labels of one clustering."""
    if method == "stimg":
        stimg.tl.domains(slide, n_domains, use_rep=feature, rng=seed)
        return slide.obs["stimg_domain"].to_numpy()
    values = slide.obsm[feature]
    values = PCA(min(15, *values.shape), svd_solver="full").fit_transform(values)
    if method == "mclust":
        return mclust(values, n_domains)
    floor = 1e-6 * values.var(0).mean()
    mixture = GaussianMixture(n_domains, covariance_type="tied", n_init=10, random_state=seed, reg_covar=floor)
    return mixture.fit_predict(values)


def main() -> None:
    """Cluster, compare and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    warnings.simplefilter("ignore", ConvergenceWarning)
    rows = []
    for entry in read_slides("train", "validation", "held_out"):
        if not entry.get("labels"):
            continue
        slide = entry["adata"]
        add_baselines(slide)
        stimg.tl.embed(slide, args.weights)
        known = slide.obs["domain"].notna().to_numpy()
        truth, n_domains = slide.obs["domain"][known], slide.obs["domain"].nunique()
        for feature in FEATURES:
            for method in METHODS:
                started = time.perf_counter()
                seeds = range(1 if method == "mclust" else SEEDS)
                runs = [cluster(slide, feature, method, n_domains, seed) for seed in seeds]
                seconds = (time.perf_counter() - started) / len(runs)
                if runs[0] is None:
                    continue
                pairs = [adjusted_rand_score(*pair) for pair in combinations(runs, 2)]
                rows.append(
                    {
                        "slide": entry["file"],
                        "held out": split_of(entry) == "held_out",
                        "feature": feature,
                        "method": method,
                        "ARI": np.mean([adjusted_rand_score(truth, labels[known]) for labels in runs]),
                        "agree": np.mean(pairs) if pairs else np.nan,
                        "seconds": seconds,
                    }
                )
        print(entry["file"], flush=True)
    found = pd.DataFrame(rows)
    columns = ["ARI", "agree", "seconds"]
    mean = found.groupby(["held out", "feature", "method"], sort=False)[columns].mean().reset_index()
    overall = found.groupby(["held out", "method"], sort=False)[columns].mean().reset_index().assign(feature="all")
    table = pd.concat([mean, overall]).round(3)
    text = f"# Mixtures\n\n`python benchmarks/mixture.py {args.weights}` (stimg {stimg.__version__})\n\n"
    text += f"{__doc__.split(chr(10), 4)[4]}\n{table.to_markdown(index=False)}\n\nBy slide, with `X_stimg_slide`:\n\n"
    by_slide = found[found["feature"] == FEATURES[-1]].pivot_table(index="slide", columns="method", values="ARI")
    Path("benchmarks/results/mixture.md").write_text(text + by_slide.round(3).to_markdown() + "\n")
    print(table.to_string())


if __name__ == "__main__":
    main()
