"""Train weights for many tissues on all the slides of `slides.toml`.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/train.py judged --minutes 20
    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/train.py all --minutes 20

`judged` leaves out the slides marked `held_out`, `validation` also those marked so (choices are made on them), `all`
trains on everything. Checkpoints are written every epoch to `benchmarks/weights/NAME/`; `--resume` goes on from the
last one. After every epoch a probe of the labelled slides that come next in the split (`validation` for weights of that
name, `held_out` for `judged`, none for `all`) goes to `benchmarks/weights/NAME/probes.csv`; nothing is chosen by it.
"""

from __future__ import annotations

import argparse
import os
import tomllib
import warnings
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from lightning import Callback, LightningModule, Trainer

import stimg
from stimg.models import Model
from stimg.nn import get_config

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "weights"
SPLITS = ("train", "validation", "held_out")
PARTS = {"validation": SPLITS[:1], "judged": SPLITS[:2], "all": SPLITS}


def split_of(entry: dict) -> str:
    """Name the part of the split that a slide is in."""
    return "held_out" if entry.get("held_out") else "validation" if entry.get("validation") else "train"


def read_slides(*parts: str) -> list[dict]:
    """Read the slides of these parts of the split with lattice and selected genes, as `entry["adata"]`."""
    entries = tomllib.loads((HERE / "slides.toml").read_text())["slide"]
    entries = [entry for entry in entries if split_of(entry) in parts]
    for entry in entries:
        adata = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"{entry['file']}.h5ad")
        adata.var_names_make_unique()
        stimg.pp.to_lattice(adata)
        stimg.pp.select_genes(adata, n_genes=min(2000, adata.n_vars))
        entry["adata"] = adata
    return entries


class Probe(Callback):
    """Agreement with the experts and k-NN in blocked folds after every epoch, of slides that are not trained on."""

    def __init__(self, entries: list[dict], genes: np.ndarray, card: dict, path: Path) -> None:
        self.entries, self.genes, self.card, self.path = entries, genes, card, path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Append one row a slide."""
        model = Model(deepcopy(pl_module.network).cpu().eval(), self.genes, self.card)
        for entry in self.entries:
            slide = entry["adata"].copy()
            labels = slide.obs["domain"]
            stimg.tl.embed(slide, model)
            stimg.tl.domains(slide, labels.nunique())
            probe = stimg.metrics.probe(
                slide.obsm["X_stimg"], labels, slide.obsm["spatial"], method="knn", protocol="blocked"
            )
            row = {"epoch": trainer.current_epoch, "slide": entry["file"], "blocked k-NN": probe["accuracy"]}
            row["ARI"] = stimg.metrics.domain_scores(labels, slide.obs["stimg_domain"])["ari"]
            pd.DataFrame([row]).round(4).to_csv(self.path, mode="a", header=not self.path.exists(), index=False)


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("split", choices=tuple(PARTS))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--unit", choices=("patch", "spot"), default="patch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--label-loss", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    name = args.name or f"{args.config}-{args.split}"
    warnings.simplefilter("ignore", UserWarning)
    entries = read_slides(*PARTS[args.split])
    patches = stimg.pp.to_patches(
        [entry["adata"] for entry in entries],
        size=args.size,
        min_tissue=0.2,
        names=[entry["file"] for entry in entries],
        groups=[entry["tissue"] for entry in entries],
        orthologs=True,
        label_key="domain" if args.label_loss else None,
    )
    print(patches, flush=True)
    config = get_config(args.config)
    batch_size = max(1, args.batch_size * 16**2 // args.size**2)  # as many sites a step, whatever the patch
    checkpoints = WEIGHTS / name
    checkpoints.mkdir(parents=True, exist_ok=True)
    probed = [entry for entry in read_slides(*SPLITS[len(PARTS[args.split]) :][:1]) if entry.get("labels")]
    card = {"name": name, "unit": args.unit, "size": args.size if args.unit == "patch" else 1, "target_sum": 1e4}
    mask = "genes" if args.unit == "spot" else config.mask  # all that a single spot can hide
    model = stimg.tl.pretrain(
        patches,
        replace(config, label_loss=args.label_loss, batch_size=batch_size, mask=mask),
        unit=args.unit,
        max_epochs=1000,
        max_time=timedelta(minutes=args.minutes),
        checkpoint_dir=checkpoints,
        resume=checkpoints / "last.ckpt" if args.resume else None,
        name=f"stimg-{args.config}",
        callbacks=[Probe(probed, patches.genes, card, checkpoints / "probes.csv")],
        rng=args.seed,
    )
    model.save(WEIGHTS / f"{name}.safetensors", overwrite=True)
    print(model, model.history.to_string(), sep="\n")


if __name__ == "__main__":
    main()
