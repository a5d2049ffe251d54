"""The same network read at other spot sizes than it was trained at.

    STIMG_DATA_DIR=../shared/data python benchmarks/expression_sizes.py [--epochs 10]

Two kinds of truth. "synthetic": `stimg.datasets.synthetic_histology` knows its dense map; trained on four slides' spots
of 100 um, tested on a fifth at places 40 um apart, as log-normalised expected counts in disks of 25 to 200 um.
"HER2+": trained on sections C2 to C4 (spots of 100 um, 200 um apart), tested on C5 and C6: single spots (100 um), and
squares of 2 x 2 spots whose counts are summed, predicted as one square of 400 um or, where a method can, from its four
spots. Pearson correlation, mean over genes ("pcc_m") and over all places and genes at once ("pooled"). Half size has no
truth on real slides of this kind.

Methods, trained on the same crops with the same epochs: "stimg" reads the dense map inside the shape, as a mean
(default) or as a sum (PixNet), the latter trained with sums as well; "one size": stimg trained on single spots only,
without groups of neighbours; "spot-wise CNN" (as in `expression.py`) sees the crop of 192 um around the place, as
trained, whatever the size asked for ("fixed crop"), or a crop that grows with the size ("scaled crop"). MSE is in
log-normalised units.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import shapely
import torch
from expression import CROP, MPP, RUNS, read, spot_crops, spot_wise
from scipy import sparse

import stimg
from stimg._image._footprints import disk_footprints
from stimg._image._place import ImageSource, place_on_image
from stimg.nn import DenseConfig

KEY = "stimg_image"
CONFIGS = {
    "stimg, mean (default)": DenseConfig(),
    "stimg, sum": DenseConfig(aggregation="sum"),
    "stimg, mean, one size": DenseConfig(group_sizes=(0.0,)),
}


@dataclass
class Places:
    """Where a slide is read, and what is true there."""

    slide: anndata.AnnData
    image: Any
    centres: np.ndarray  # row and column in micrometres
    size_um: float
    truth: np.ndarray
    square: bool = False
    image_mpp: float | None = None


def crops_at(places: Places, scale: float) -> torch.Tensor:
    """Crops of 192 um times `scale` around places, brought to the same number of pixels."""
    source = ImageSource(places.image, places.image_mpp, 1.0, "spatial", None, None, None)
    place = place_on_image(places.slide, source, mpp=MPP)
    half = CROP / 2 * MPP * scale
    crops = [place.image.read(y - half, x - half, (CROP, CROP), MPP * scale) for y, x in places.centres]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


def grid_of(places: Places, genes: np.ndarray) -> anndata.AnnData:
    """Observations at the places, without counts."""
    source = ImageSource(places.image, places.image_mpp, 1.0, "spatial", None, None, None)
    place = place_on_image(places.slide, source, mpp=MPP)
    empty = sparse.csr_matrix((len(places.centres), len(genes)), dtype=np.float32)
    grid = anndata.AnnData(empty, var=pd.DataFrame(index=genes), uns=places.slide.uns)
    grid.obsm["spatial"] = places.centres[:, ::-1] / place.um_per_unit
    grid.uns["stimg_um_per_unit"] = place.um_per_unit
    return grid


def predict(places: Places, model: stimg.models.ExpressionModel) -> np.ndarray:
    """Read the dense map at the places."""
    grid = grid_of(places, model.genes)
    unit = grid.uns.pop("stimg_um_per_unit")
    options: dict[str, Any] = {"diameter_um": places.size_um}
    if places.square:
        half = places.size_um / 2 / unit
        x, y = grid.obsm["spatial"].T
        options = {"shapes": shapely.box(x - half, y - half, x + half, y + half)}
    stimg.tl.predict_expression(grid, model, places.image, image_mpp=unit, **options)
    return grid.obsm[KEY][list(model.genes)].to_numpy()


def score(truth: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Correlation and error over places with a truth."""
    scores = stimg.metrics.expression_scores(truth, found)
    pooled = np.corrcoef(truth.ravel(), found.ravel())[0, 1]
    return {"pcc_m": scores["pcc_m"], "mse": scores["mse"], "pooled": float(pooled)}


def evaluate(name: str, patches: Any, judged: list[list[Places]], seed: int, epochs: int) -> list[dict[str, Any]]:
    """Train all methods and judge them at every size; `judged` has a list of slides a size."""
    rows = []
    trained_um = patches.slides[0].diameter_um

    def add(method: str, size: float, truth: np.ndarray, found: np.ndarray) -> None:
        rows.append({"data": name, "method": method, "size_um": round(size), "seed": seed, **score(truth, found)})
        print(rows[-1], flush=True)

    for method, config in CONFIGS.items():
        model = stimg.tl.train_expression(patches, config, max_epochs=epochs, device="cpu", rng=seed)
        for places in judged:
            truth = np.concatenate([one.truth for one in places])
            add(method, places[0].size_um, truth, np.concatenate([predict(one, model) for one in places]))
            if places[0].square and method.endswith("(default)"):
                singles = [replace(one, size_um=trained_um, square=False) for one in places]
                quarters = [four_spots(one, model) for one in singles]
                add("stimg, mean of four spots", places[0].size_um, truth, np.concatenate(quarters))
    crops = torch.cat([spot_crops(slide) for slide in patches.slides])
    asked = [(places, kind) for places in judged for kind in ("fixed crop", "scaled crop")]
    scales = [places[0].size_um / trained_um if kind == "scaled crop" else 1.0 for places, kind in asked]
    tests = [
        torch.cat([crops_at(one, scale) for one in places]) for (places, _), scale in zip(asked, scales, strict=True)
    ]
    found = spot_wise(crops, patches, torch.cat(tests), epochs, seed=seed)
    ends = np.cumsum([len(part) for part in tests])[:-1]
    for (places, kind), values in zip(asked, np.split(found, ends), strict=True):
        truth = np.concatenate([one.truth for one in places])
        add(f"spot-wise CNN, {kind}", places[0].size_um, truth, values)
    return rows


def four_spots(places: Places, model: stimg.models.ExpressionModel) -> np.ndarray:
    """Log of the mean of normalised expression at the centres of a square's four spots."""
    offsets = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]]) * 100.0
    parts = [np.expm1(predict(replace(places, centres=places.centres + step), model)) for step in offsets]
    return np.log1p(np.mean(parts, 0))


def synthetic(epochs: int, seed: int) -> list[dict[str, Any]]:
    """Known maps."""
    *train, test = (stimg.datasets.synthetic_histology(seed=5 * seed + i) for i in range(5))
    for slide in (*train, test):
        stimg.pp.to_lattice(slide, platform="st")
    patches = stimg.pp.to_image_patches(train, mpp=MPP, stride=256)
    known = test.uns.pop("stimg_truth")
    rate = known["map"].astype(np.float64)
    unit, shape = float(known["mpp"]), (rate.shape[1], rate.shape[2])
    margin = 130.0
    axes = [np.arange(margin, side * unit - margin, 40.0) for side in shape]
    centres = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    rows = [list(known["genes"]).index(gene) for gene in patches.genes]
    judged = []
    for size in (25.0, 50.0, 100.0, 200.0):
        areas = disk_footprints(centres / unit, size / 2 / unit, shape)
        inside = areas @ rate.reshape(len(rate), -1).T
        total = inside.sum(1)
        kept = total > 0
        truth = np.log1p(patches.target_sum * inside[kept][:, rows] / total[kept][:, None])
        judged.append([Places(test, None, centres[kept], size, truth.astype(np.float32))])
    return evaluate("synthetic", patches, judged, seed, epochs)


def her2(epochs: int, seed: int) -> list[dict[str, Any]]:
    """Sections of one patient, single spots and squares of four."""
    names = RUNS["C2-C4 to C5-C6"]
    (train, train_images), (test, test_images) = read(names[0]), read(names[1])
    patches = stimg.pp.to_image_patches(train, train_images, mpp=MPP, stride=256)
    judged_patches = stimg.pp.to_image_patches(test, test_images, mpp=MPP, genes=list(patches.genes))
    ones, squares = [], []
    for slide, table, image in zip(judged_patches.slides, test, test_images, strict=True):
        mpp = slide.image.mpp
        ones.append(Places(table, image, slide.centres, slide.diameter_um, slide.targets, image_mpp=mpp))
        sites = table.obsm["lattice"][slide.obs_index]
        at = {tuple(site): i for i, site in enumerate(sites)}
        corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
        members = [[at.get((r + dr, c + dc), -1) for dr, dc in corners] for r, c in sites]
        members = np.array([found for found in members if min(found) >= 0])
        share = slide.counts.toarray()[members].sum(1) / slide.totals[members].sum(1)[:, None]
        truth = np.log1p(patches.target_sum * share).astype(np.float32)
        centres = slide.centres[members].mean(1)
        squares.append(Places(table, image, centres, 4 * slide.diameter_um, truth, square=True, image_mpp=mpp))
    return evaluate("HER2+", patches, [ones, squares], seed, epochs)


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=["synthetic", "her2"], default=["synthetic", "her2"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expression_sizes.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    runs = {"synthetic": synthetic, "her2": her2}
    rows = [row for name in args.only for seed in range(args.seeds) for row in runs[name](args.epochs, seed)]
    columns = ["data", "method", "size_um"]
    table = (
        pd.DataFrame(rows).groupby(columns, sort=False)[["pcc_m", "mse", "pooled"]].mean().unstack("size_um").round(3)
    )
    table.columns = [f"{score} at {size:g} um" for score, size in table.columns]
    table = table.dropna(axis=1, how="all").reset_index()
    command = f"python benchmarks/expression_sizes.py --epochs {args.epochs} --seeds {args.seeds}"
    text = f"# Expression from H&E at other spot sizes\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
