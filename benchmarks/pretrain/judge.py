"""Domains without training on the slide: pretrained weights against cheap baselines and peers.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/judge.py stimg=WEIGHTS [stimg=WEIGHTS other=WEIGHTS ...]

Judged are the labelled slides marked `held_out` in `slides.toml`, which the weights never saw; weights under one name
are training seeds of one recipe. A row of weights is `.obsm["X_stimg_slide"]`, which `stimg.tl.domains` takes by
default; "network alone" is `.obsm["X_stimg"]`. Baselines: principal components (30, z-scored 2,000 most variable genes
of the slide), the same averaged over the 18 nearest spots, and 20 components with their means over rings of 1, 2 and 3
pitches (CellCharter's features). Peers are trained on the slide itself by `benchmarks/peers/run.py` and taken from
`benchmarks/peers/out/`; where that lacks their runs, their rows are those of the table before. All are clustered by
`stimg.tl.domains` with its defaults and as many domains as the slide has labels; "own ARI" is that of the peer's own
clustering. The weights named stimg learned the expert labels of other slides in `slides.toml` (for 151675 of two
sections of the same donor, for heart of sections on another array, for breast of other patients, for STARmap of another
animal, for the olfactory bulb none); all others use no labels. ARI, NMI and accuracy are means over 5 seeds of the
clustering; k-NN is blocked in space; seconds are those of the embedding, of a slide in memory; peak memory is that of a
whole process with its libraries. Everything ran on one thread; GraphST and SpaGCN were timed while other jobs shared
the machine, the others beside at most one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score
from train import read_slides

import stimg

sys.path.append(str(Path(__file__).parents[1]))
from baselines import near_means, ring_means

SEEDS = 5
PEERS = Path(__file__).parents[1] / "peers" / "out"


def add_baselines(slide: AnnData) -> dict[str, float]:
    """Write the baselines to `.obsm`; return the seconds of each."""
    started = time.perf_counter()
    arrays = stimg.pp.to_patches(slide, size=1, min_tissue=0.0).slides[0]
    values = arrays.standardise(arrays.expression.toarray(), np.arange(len(arrays.genes)))
    slide.obsm["PCA 30"] = PCA(min(30, *values.shape), random_state=0).fit_transform(values)[arrays.obs_site]
    seconds = {"PCA 30": time.perf_counter() - started}
    slide.obsm["PCA + 18 nearest"] = near_means(slide.obsm["PCA 30"], slide)
    slide.obsm["PCA 20 + rings"] = ring_means(slide.obsm["PCA 30"][:, :20], slide)
    total_seconds = time.perf_counter() - started
    return seconds | {"PCA + 18 nearest": total_seconds, "PCA 20 + rings": total_seconds}


def judge(slide: AnnData, key: str) -> dict[str, float]:
    """Scores of `.obsm[key]` against the expert labels; the last domains stay in `.obs["stimg_domain"]`."""
    labels = slide.obs["domain"]
    rows = []
    for seed in reversed(range(SEEDS)):
        stimg.tl.domains(slide, labels.nunique(), use_rep=key, rng=seed)
        rows.append(stimg.metrics.domain_scores(labels, slide.obs["stimg_domain"]))
    scores = pd.DataFrame(rows)[["ari", "nmi", "accuracy"]].mean().to_dict()
    probe = stimg.metrics.probe(slide.obsm[key], labels, slide.obsm["spatial"], method="knn", protocol="blocked")
    return {**scores, "blocked k-NN": probe["accuracy"], "macro F1": probe["macro_f1"]}


def judge_peers(slide: AnnData, name: str) -> Iterator[dict]:
    """Scores of every peer's runs on a slide."""
    for path in sorted(PEERS.glob(f"*/{name.replace('/', '-')}/*.npz")):
        with np.load(path) as found:
            slide.obsm["peer"] = found["embedding"]
            scores = {"method": path.parts[-3], **judge(slide, "peer")}
            if "labels" in found:
                scores["own ARI"] = stimg.metrics.domain_scores(slide.obs["domain"], found["labels"])["ari"]
            yield {**scores, "seconds": float(found["seconds"]), "peak MB": float(found["peak_mb"])}


def rows_before(path: Path) -> list[dict]:
    """Rows of peers in the table that is written anew, but for their means."""
    rows = json.loads(path.read_text()) if path.exists() else []
    return [row for row in rows if row["peak MB"] is not None and row["slide"] != "mean"]


def judge_weights(slide: AnnData, named: list[tuple[str, str]]) -> Iterator[dict]:
    """Scores of all weights on a slide, and how well the domains of one recipe's training seeds agree."""
    domains: dict[str, list] = {}
    for name, path in named:
        started = time.perf_counter()
        stimg.tl.embed(slide, path)
        seconds = time.perf_counter() - started
        for method, key in ((name, "X_stimg_slide"), (f"{name}, network alone", "X_stimg")):
            scores = {"method": method, "seconds": seconds, **judge(slide, key)}
            others = domains.setdefault(method, [])
            others.append(slide.obs["stimg_domain"].to_numpy())
            pairs = [adjusted_rand_score(*pair) for pair in combinations(others, 2)]
            yield scores | ({"seeds agree": np.mean(pairs)} if pairs else {})


def main() -> None:
    """Judge the weights and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", nargs="+", metavar="NAME=WEIGHTS")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretrained.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    named = [tuple(weights.split("=", 1)) for weights in args.weights]
    rows = []
    before = rows_before(args.out.with_suffix(".json"))
    for entry in read_slides("held_out"):
        if not entry.get("labels"):
            continue
        slide, name = entry["adata"], entry["file"]
        stimg.tl.embed(slide, named[0][1])  # reads the file and warms up, so that seconds are the embedding's
        for key, seconds in add_baselines(slide).items():
            rows.append({"slide": name, "runs": 1, "method": key, **judge(slide, key), "seconds": seconds})
        peers = [{"slide": name, "runs": 1, **row} for row in judge_peers(slide, name)]
        known = {row["method"] for row in peers}
        rows += peers + [row for row in before if row["slide"] == name and row["method"] not in known]
        rows += [{"slide": name, **row} for row in judge_weights(slide, named)]
        print(pd.DataFrame(rows).query("slide == @name").round(3).to_string(), flush=True)
    found = pd.DataFrame(rows)
    found["runs"] = found["runs"].fillna(1)
    grouped = found.groupby(["slide", "method"], sort=False)
    table = grouped.mean().assign(runs=grouped["runs"].sum()).reset_index()
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(slide="mean")
    complete = table.groupby("method")["slide"].nunique()
    mean = mean[mean["method"].map(complete) == table["slide"].nunique()]
    table = pd.concat([table, mean]).round(3)
    args.out.with_suffix(".json").write_text(table.to_json(orient="records", indent=1) + "\n")
    command = f"python benchmarks/pretrain/judge.py {' '.join(repr(w) if ' ' in w else w for w in args.weights)}"
    text = f"# Pretrained weights on slides that they never saw\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
