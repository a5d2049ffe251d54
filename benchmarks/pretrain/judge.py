"""Domains without training on the slide: pretrained weights against cheap baselines, on slides they never saw.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/judge.py WEIGHTS [WEIGHTS ...]

Judged are the labelled slides marked `held_out` in `slides.toml`. Baselines: principal components (30, z-scored 2,000
most variable genes of the slide), the same averaged over the 18 nearest spots, and 20 components with their means over
rings of 1, 2 and 3 pitches (CellCharter's features). All are clustered by `stimg.tl.domains` with its defaults and as
many domains as the slide has labels. The weights learned the expert labels of other slides in `slides.toml` (for 151675
of two sections of the same donor, for heart of sections on another array, for breast of other patients, for STARmap of
another animal, for the olfactory bulb none); the baselines use no labels. ARI, NMI and accuracy are means over 5 seeds;
k-NN is blocked in space; seconds are those of the embedding.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from train import read_slides

import stimg

SEEDS = 5


def add_baselines(slide: AnnData) -> dict[str, float]:
    """Write the baselines to `.obsm`; return the seconds of each."""
    started = time.perf_counter()
    arrays = stimg.pp.to_patches(slide, size=1, min_tissue=0.0).slides[0]
    values = arrays.standardise(arrays.expression.toarray(), np.arange(len(arrays.genes)))
    slide.obsm["PCA 30"] = PCA(min(30, *values.shape), random_state=0).fit_transform(values)[arrays.obs_site]
    seconds = {"PCA 30": time.perf_counter() - started}
    tree = cKDTree(slide.obsm["spatial"])
    near = tree.query(slide.obsm["spatial"], k=19)[1]
    slide.obsm["PCA + 18 nearest"] = slide.obsm["PCA 30"][near].mean(1)
    pitch = slide.uns["stimg"]["lattice"]["pitch"]
    pairs = tree.sparse_distance_matrix(tree, 3.5 * pitch, output_type="coo_matrix")
    parts = [slide.obsm["PCA 30"][:, :20]]
    for ring in (1, 2, 3):
        inside = (pairs.data > (ring - 0.5) * pitch) & (pairs.data <= (ring + 0.5) * pitch)
        total = np.zeros_like(parts[0])
        np.add.at(total, pairs.row[inside], parts[0][pairs.col[inside]])
        parts.append(total / np.maximum(np.bincount(pairs.row[inside], minlength=len(total)), 1)[:, None])
    slide.obsm["PCA 20 + rings"] = np.concatenate(parts, axis=1)
    total_seconds = time.perf_counter() - started
    return seconds | {"PCA + 18 nearest": total_seconds, "PCA 20 + rings": total_seconds}


def judge(slide: AnnData, key: str) -> dict[str, float]:
    """Scores of `.obsm[key]` against the expert labels."""
    labels = slide.obs["domain"]
    rows = []
    for seed in range(SEEDS):
        stimg.tl.domains(slide, labels.nunique(), use_rep=key, rng=seed)
        rows.append(stimg.metrics.domain_scores(labels, slide.obs["stimg_domain"]))
    scores = pd.DataFrame(rows)[["ari", "nmi", "accuracy"]].mean().to_dict()
    probe = stimg.metrics.probe(slide.obsm[key], labels, slide.obsm["spatial"], method="knn", protocol="blocked")
    return {**scores, "blocked k-NN": probe["accuracy"], "macro F1": probe["macro_f1"]}


def main() -> None:
    """Judge the weights and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretrained.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for entry in read_slides(held_out=True):
        if not entry.get("labels"):
            continue
        slide = entry["adata"]
        seconds = add_baselines(slide)
        for path in args.weights:
            started = time.perf_counter()
            stimg.tl.embed(slide, path, key_added=path.stem)
            seconds[path.stem] = time.perf_counter() - started
        for key, spent in seconds.items():
            rows.append({"slide": entry["file"], "method": key, **judge(slide, key), "seconds": spent})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(slide="mean")
    table = pd.concat([table, mean]).round(3)
    args.out.with_suffix(".json").write_text(table.to_json(orient="records", indent=1) + "\n")
    command = f"python benchmarks/pretrain/judge.py {' '.join(map(str, args.weights))}"
    text = f"# Pretrained weights on slides that they never saw\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
