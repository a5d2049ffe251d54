"""Going on from pretrained weights on the slide itself, against not training and against training from nothing.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/finetune.py WEIGHTS [--seconds 60] [--part held_out]

On every labelled slide of a part of the split: the weights as they are; the weights after training for so many seconds
on the slide, without its labels; and the tiny network trained on the slide for as many seconds from nothing. Domains
are those of `.obsm["X_stimg"]`, the network's embedding alone, and of `.obsm["X_stimg_slide"]`, the default; k-NN
(blocked in space) is that of the network's embedding, and MSE that of ten hidden regions of 2 x 2 sites on
log-normalised expression of the slide's selected genes that the network knows. Three seeds of the clustering, one of
training.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from train import read_slides

import stimg
from stimg._slide._values import log_normalise
from stimg.models import Model

SEEDS = 3


def judge(slide: AnnData, model: Model, genes: np.ndarray) -> dict[str, float]:
    """Scores of a model on a slide."""
    stimg.tl.embed(slide, model)
    labels = slide.obs["domain"]
    scores = {}
    for name, key in (("ARI, network", "X_stimg"), ("ARI, default", "X_stimg_slide")):
        found = []
        for seed in range(SEEDS):
            stimg.tl.domains(slide, labels.nunique(), use_rep=key, rng=seed)
            found.append(stimg.metrics.domain_scores(labels, slide.obs["stimg_domain"])["ari"])
        scores[name] = np.mean(found)
    probe = stimg.metrics.probe(slide.obsm["X_stimg"], labels, slide.obsm["spatial"], method="knn", protocol="blocked")
    hidden = stimg.metrics.hide_regions(slide.obsm["lattice"], 2, n_regions=10, rng=0)
    hidden &= np.asarray(slide.X.sum(1)).ravel() > 0
    measured = log_normalise(sparse.csr_array(slide.X), model.card["target_sum"])
    truth = measured[np.flatnonzero(hidden)][:, np.flatnonzero(genes)]
    names = slide.var_names[genes]
    filled = stimg.tl.reconstruct(slide, model, hidden=hidden, genes=names, copy=True).obsm["stimg"][hidden]
    error = stimg.metrics.reconstruction_scores(truth, filled)["mse"]
    return scores | {"blocked k-NN": probe["accuracy"], "hidden MSE": error}


def main() -> None:
    """Train, judge and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--part", default="held_out")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    start = Model.load(args.weights)
    rows = []
    for entry in read_slides(args.part):
        if not entry.get("labels"):
            continue
        slide = entry["adata"]
        patches = stimg.pp.to_patches(slide, min_tissue=0.2)
        genes = slide.var_names.isin(start.genes) & (slide.var["stimg_weight"].to_numpy() > 0)
        options = {"max_epochs": 1000, "max_time": timedelta(seconds=args.seconds), "val_fraction": 0}
        slower = replace(start.config, learning_rate=args.learning_rate)
        models = {
            "as they are": start,
            "gone on": stimg.tl.pretrain(patches, slower, init=start, **options),
            "from nothing": stimg.tl.pretrain(patches, **options),
        }
        for method, model in models.items():
            rows.append({"slide": entry["file"], "weights": method, **judge(slide, model, genes)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    mean = table.groupby("weights", sort=False).mean(numeric_only=True).reset_index().assign(slide="mean")
    table = pd.concat([table, mean]).round(3)
    command = f"python benchmarks/pretrain/finetune.py {args.weights} --seconds {args.seconds} --part {args.part}"
    text = f"# Going on from pretrained weights\n\n`{command} --learning-rate {args.learning_rate}` (stimg "
    text += f"{stimg.__version__})\n\n{__doc__.split(chr(10), 4)[4]}\n{table.to_markdown(index=False)}\n"
    Path("benchmarks/results/finetune.md").write_text(text)
    print(table.to_string())


if __name__ == "__main__":
    main()
