"""Train weights for many tissues on all the slides of `slides.toml`.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/train.py judged --minutes 25
    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/train.py all --minutes 25

`judged` leaves out the slides marked `held_out`, `validation` also those marked so (choices are made on them), `all`
trains on everything. Checkpoints are written every epoch to `benchmarks/weights/NAME/`; `--resume` goes on from the
last one.
"""

from __future__ import annotations

import argparse
import os
import tomllib
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anndata

import stimg
from stimg.nn import get_config

HERE = Path(__file__).parent
WEIGHTS = HERE.parent / "weights"
PARTS = {"validation": ["train"], "judged": ["train", "validation"], "all": ["train", "validation", "held_out"]}


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


def main() -> None:
    """Train, and write the weights."""
    parser = argparse.ArgumentParser()
    parser.add_argument("split", choices=tuple(PARTS))
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--size", type=int, default=16)
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
    batch_size = max(1, config.batch_size * 16**2 // args.size**2)  # as many sites a step, whatever the patch
    checkpoints = WEIGHTS / name
    model = stimg.tl.pretrain(
        patches,
        replace(config, label_loss=args.label_loss, batch_size=batch_size),
        max_epochs=1000,
        max_time=timedelta(minutes=args.minutes),
        checkpoint_dir=checkpoints,
        resume=checkpoints / "last.ckpt" if args.resume else None,
        name=f"stimg-{args.config}",
        rng=args.seed,
    )
    model.save(WEIGHTS / f"{name}.safetensors", overwrite=True)
    print(model, model.history.to_string(), sep="\n")


if __name__ == "__main__":
    main()
