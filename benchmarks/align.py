"""Image-gene alignment: do the two sides of spots find each other on tissue that was not trained on?

    STIMG_DATA_DIR=../shared/data python benchmarks/align.py [--epochs 40] [--seeds 3] [--only NAME ...]

The runs of `expression.py`: HER2+ patient A to C and C to A, half of patient C's sections to the other half, mouse
olfactory bulb MOB1 to 3 to MOB_rep11. 250 genes of the highest mean in the training slides. Recall@10 within each test
slide, mean over slides, both ways, and over that of a random order ("x chance"). "stimg": `stimg.tl.align` and
`embed_pairs` with their defaults, in which stain statistics tell the images apart; "linear genes": with STimage-1K4M's
linear gene encoder; "convolutions": with the bundled convolutional encoder trained from scratch as well, on crops of 96
pixels and for 10 epochs; "untrained": one step at a learning rate of nothing; "variable genes" and "each slide's":
`gene_rule="variable"` and `"variable_in_each"` in place of the highest mean; "embedding": expression read by a spatial
embedding that stays as it is, of a network pretrained on the training slides' expression; "tuned": that network trained
on with the heads, for 10 epochs. "retrieved PCC@M": BLEEP-like expression by retrieval of 50 training spots, Pearson
correlation, mean over genes, to compare with `stimg.tl.train_expression`'s in `expression.md`.

"C to A" and "MOB" also have probes of the pathologists' labels of A1 (282 of 346 spots are invasive cancer) and of
MOB_rep11 (five layers): macro-F1 of logistic regression in spatially blocked folds on the image embedding, on the gene
embedding, and on both; and on an image encoder of the same kind trained without expression ("image-only": each crop has
to find itself under other colours and symmetries). Cells are means over training seeds and their standard deviation.
Runs and methods were computed in several calls (`--only`, `--methods`) beside other jobs; "tuned" in three of the runs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from expression import MPP, MPP_2K, RUNS, read
from torch import Tensor
from torch.utils.data import DataLoader

import stimg
from stimg._data._spot_crops import SpotCropDataset
from stimg._train._align import neighbours_of
from stimg._train._images import jitter_colours
from stimg._train._module import TrainingModule
from stimg._train._run import Run
from stimg._train._sampler import EpochSampler
from stimg.models import Model
from stimg.nn import AlignConfig, AlignNetwork, ConvEncoder
from stimg.nn._losses import contrastive_loss

DATA = Path(os.environ["STIMG_DATA_DIR"])
CROP = 96
SLOW_EPOCHS = 10
PRETRAIN_EPOCHS = 10
METHODS = (
    "untrained",
    "stimg",
    "linear genes",
    "variable genes",
    "each slide's",
    "embedding",
    "tuned",
    "convolutions",
    "image-only",
)
LABELLED = ("C to A", "MOB")


class ImageOnly(TrainingModule):
    """Each crop has to find itself under other colours and another symmetry (SimCLR's task)."""

    sample = "image"

    def loss(self, batch: dict[str, Tensor], seed: int) -> Tensor:
        """Loss of one batch."""
        generator = torch.Generator().manual_seed(seed)
        images = batch["image"].float() / 255
        views = []
        for turned in (images, torch.rot90(images.flip(3), 1, (2, 3))):
            colours = jitter_colours(turned, 3 * self.recipe.colour_jitter, generator)
            views.append(self.network.encode_images(torch.zeros_like(batch["look"]), colours))
        alike = neighbours_of(batch["slide"], batch["centre"], torch.zeros(batch["slide"].max() + 1))
        return contrastive_loss(views[0], views[1], self.network.scale, alike)


def image_only(patches: Any, config: AlignConfig, epochs: int, seed: int) -> AlignNetwork:
    """Train the image encoder without expression."""
    torch.manual_seed(seed)
    network = AlignNetwork(config, len(patches.genes), ConvEncoder())
    every = np.arange(sum(len(slide.centres) for slide in patches.slides))
    spots = SpotCropDataset(patches, CROP, every, crops=True, augment=True)
    loader = DataLoader(spots, config.batch_size, sampler=EpochSampler(len(spots), seed), drop_last=True)
    run = Run(max_epochs=epochs, device="cpu", rng=seed)
    run.fit(ImageOnly(network, config, run), loader, None)
    return network


def probe(table: anndata.AnnData, keys: list[str]) -> float:
    """Macro-F1 of the labels."""
    values = np.concatenate([table.obsm[key] for key in keys], axis=1)
    labels, places = table.obs["domain"], table.obsm["spatial"]
    return stimg.metrics.probe(values, labels, places, method="logistic", protocol="blocked")["macro_f1"]


def embed(train: list[anndata.AnnData], test: list[anndata.AnnData]) -> Model:
    """Embed all slides with a network pretrained on the training slides."""
    for slide in train:
        stimg.pp.select_genes(slide)
    patches = stimg.pp.to_patches(train, size=8, n_channels=256)
    model = stimg.tl.pretrain(patches, max_epochs=PRETRAIN_EPOCHS, val_fraction=0, device="cpu")
    stimg.tl.embed([*train, *test], model)
    return model


def run(name: str, epochs: int, seeds: int, methods: list[str]) -> list[dict[str, Any]]:
    """Train on some slides, retrieve on others."""
    (train, train_images), (test, test_images) = read(RUNS[name][0]), read(RUNS[name][1])
    shared = sorted(set.intersection(*(set(slide.var_names) for slide in (*train, *test))))
    mpp = None
    if name == "MOB":
        train, mpp = [slide[:, shared].copy() for slide in train], MPP_2K
    spatial = embed(train, test)
    images: dict[str, Any] = {"names": RUNS[name][0], "mpp": MPP, "image_mpp": mpp, "use_rep": "X_stimg"}
    images["spatial_model"] = spatial
    patches = stimg.pp.to_image_patches(train, train_images, **images)
    genes = [gene for gene in patches.genes if gene in shared]
    config = AlignConfig()
    options: dict[str, dict[str, Any]] = {
        "untrained": {"config": replace(config, learning_rate=0.0), "max_steps": 1},
        "stimg": {"config": config},
        "linear genes": {"config": replace(config, gene_encoder="linear")},
        "variable genes": {"config": config, "gene_rule": "variable"},
        "each slide's": {"config": config, "gene_rule": "variable_in_each"},
        "embedding": {"config": replace(config, gene_encoder="embedding")},
    }
    few = min(epochs, SLOW_EPOCHS)
    options["tuned"] = {"config": replace(config, gene_encoder="tuned"), "max_epochs": few}
    if name == "C2-C4 to C5-C6":
        options["convolutions"] = {"config": config, "encoder": "stimg-conv", "crop_size": CROP, "max_epochs": few}
    labelled = name in LABELLED
    rows = []
    for method, seed in product([method for method in options if method in methods], range(seeds)):
        chosen, started = dict(options[method]), time.perf_counter()
        rule = chosen.pop("gene_rule", None)
        read_patches = stimg.pp.to_image_patches(train, train_images, gene_rule=rule, **images) if rule else patches
        model = stimg.tl.align(read_patches, device="cpu", rng=seed, **({"max_epochs": epochs} | chosen))
        row = {"run": name, "method": method, "seconds": time.perf_counter() - started}
        for table, image in zip(train, train_images, strict=True):
            stimg.tl.embed_pairs(table, model, image, image_mpp=mpp)
        recalls, truths, found = [], [], []
        for table, image in zip(test, test_images, strict=True):
            stimg.tl.embed_pairs(table, model, image)
            recalls.append(stimg.metrics.retrieval_recall(table.obsm["X_stimg_image"], table.obsm["X_stimg_gene"]))
            stimg.tl.retrieve_expression(table, train, genes)
            judged = stimg.pp.to_image_patches(table, image, mpp=MPP, genes=genes).slides[0]
            truths.append(judged.targets)
            found.append(table.obsm["stimg_retrieved"].iloc[judged.obs_index][genes].to_numpy())
        recall = {key: float(np.mean([one[key] for one in recalls])) for key in recalls[0]}
        for way in ("image_to_gene", "gene_to_image"):
            row[f"{way}@10"] = recall[f"{way}@10"]
            row[f"{way} x chance"] = recall[f"{way}@10"] / recall["chance@10"]
        scores = stimg.metrics.expression_scores(np.concatenate(truths), np.concatenate(found))
        row["retrieved PCC@M"] = scores["pcc_m"]
        if labelled:
            for key, parts in (("image", ["image"]), ("gene", ["gene"]), ("both", ["image", "gene"])):
                row[f"F1 {key}"] = probe(test[0], [f"X_stimg_{part}" for part in parts])
        rows.append(row)
        print({key: value if isinstance(value, str) else round(value, 3) for key, value in row.items()}, flush=True)
    for seed in range(seeds if labelled and "image-only" in methods else 0):
        model = stimg.tl.align(patches, config, max_steps=1, device="cpu")  # only to hold the network
        model.network, model.card["size"] = image_only(patches, config, min(epochs, SLOW_EPOCHS), seed), CROP
        stimg.tl.embed_pairs(test[0], model, test_images[0])
        rows.append({"run": name, "method": "image-only", "F1 image": probe(test[0], ["X_stimg_image"])})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(RUNS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="the others are taken from the last run")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/align.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    raw = args.out.with_suffix(".json")
    rows = json.loads(raw.read_text()) if raw.exists() else []
    for name in args.only:
        rows = [row for row in rows if row["run"] != name or row["method"] not in args.methods]
        rows += run(name, args.epochs, args.seeds, args.methods)
        raw.write_text(json.dumps(rows, indent=1) + "\n")
    rows.sort(key=lambda row: (list(RUNS).index(row["run"]), METHODS.index(row["method"])))
    found = pd.DataFrame(rows)
    grouped = found.groupby(["run", "method"], sort=False)
    table = grouped.mean().map("{:.3f}".format)
    if args.seeds > 1:
        table += grouped.std().map(" ± {:.3f}".format).assign(seconds="")
    table = table.where(grouped.mean().notna(), "").reset_index()
    command = f"python benchmarks/align.py --epochs {args.epochs} --seeds {args.seeds}"
    text = f"# Image-gene alignment\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
