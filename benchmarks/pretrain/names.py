"""Learn the names of regions for weights that were trained with labels before `stimg.tl.annotate` was there.

    STIMG_DATA_DIR=../shared/data python benchmarks/pretrain/names.py judged benchmarks/weights/tiny-judged.safetensors

The network stays as it is. From the labelled slides of the same split as in `train.py`, it gets the regression and the
mean expression that `stimg.tl.pretrain` now adds at the end of training.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
from train import PARTS, read_slides

import stimg
from stimg._apply._names import keep_names
from stimg.models import Model
from stimg.nn import GeneMAE


def main() -> None:
    """Read the weights and the slides, and write the file anew."""
    parser = argparse.ArgumentParser()
    parser.add_argument("split", choices=tuple(PARTS))
    parser.add_argument("weights", type=Path)
    parser.add_argument("--half", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    entries = [entry for entry in read_slides(*PARTS[args.split]) if entry.get("labels")]
    patches = stimg.pp.to_patches(
        [entry["adata"] for entry in entries],
        min_tissue=0.2,
        names=[entry["file"] for entry in entries],
        groups=[entry["tissue"] for entry in entries],
        orthologs=True,
        label_key="domain",
    )
    model = Model.load(args.weights)
    patches = patches.with_vocabulary(model.genes).with_scaling(model.config.scaling)
    if patches.labels != model.card["labels"] or not np.array_equal(patches.genes, model.genes):
        msg = f"Expected {args.weights} trained on this split with its labels, found others."
        raise ValueError(msg)
    network = GeneMAE(model.config, len(model.genes), len(patches.labels), len(patches.label_groups))
    network.load_state_dict(model.network.state_dict(), strict=False)
    model.network = network.eval()
    model.card["label_groups"] = patches.label_groups
    keep_names(model, patches, "cpu")
    model.save(args.weights, overwrite=True, half=args.half)
    print(model.sha256, patches.label_groups)


if __name__ == "__main__":
    main()
