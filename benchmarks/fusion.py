"""H&E as further channels of the expression image: does it help masked reconstruction and domains?

    STIMG_DATA_DIR=../shared/data python benchmarks/fusion.py [--epochs 30] [--seeds 3] [--only NAME ...]

Slides and images of `expression.py`. The same network (`tiny`), slides, steps and seeds, with "genes" alone; with the
mean optical density of the spot's disk in red, green and blue ("RGB") beside the genes; or with the stain statistics
that `stimg.tl.align` tells images by ("stain", 72 values a spot). Image channels are standardised within the slide like
genes, and are in every patch. "hidden": with a hidden site its image channels are hidden too, like any other channel;
"shown": they are never hidden, neither in training nor in testing: an H&E image is known where expression is not.

Judged on slides not trained on: hidden regions of 2, 4 and 8 sites, mean squared error of log-normalised expression of
the slide's selected genes over that of the "slide mean" baseline (1 = no better); "gaussian" is the kernel-weighted
mean of seen spots. ARI of `stimg.tl.domains` (the number of domains told) on the network's embedding ("ARI"), and on
that joined with the slide's own components ("ARI joined"), on slides with expert labels.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import anndata
import numpy as np
import pandas as pd
import torch
from expression import CROP, MPP, MPP_2K, RUNS, read
from scipy import sparse

import stimg
from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, site_tokens
from stimg._data._image_patches import ImageSlide
from stimg._data._spot_crops import stain_inputs, z_scores
from stimg._image._crops import read_crop
from stimg._train._pretrain import PretrainModule
from stimg.models import Model
from stimg.nn import draw_hidden

NAMED = ("A to C", "C to A", "C2-C4 to C5-C6", "MOB")
IMAGES = ("", "RGB", "stain")
REGIONS = {2: 12, 4: 6, 8: 2}
DRAWS = 3
SHIFT = 6.0  # log-normalised values are not negative; standardising within the slide takes it off again
PREFIX = "image:"


def image_values(slide: ImageSlide, kind: str) -> np.ndarray:
    """Z-scores (n_spots, n_channels) of what the image shows at each spot."""
    if kind == "stain":
        return stain_inputs(slide.image, slide.centres, size=CROP, mpp=MPP, stain_normalise=True)
    size = int(np.ceil(slide.diameter_um / MPP))
    rows, cols = np.mgrid[:size, :size] - (size - 1) / 2
    disk = np.hypot(rows, cols) * MPP <= slide.diameter_um / 2
    corners = slide.centres - size / 2 * MPP
    crops = [read_crop(slide.image, corner, size, MPP, stain_normalise=True)[:, disk].T.numpy() for corner in corners]
    return z_scores(np.array([-np.log((crop.astype(float) + 1) / 256).mean(0) for crop in crops]))


def fused(table: anndata.AnnData, image: Path, kind: str, *, mpp: float | None) -> anndata.AnnData:
    """Return the slide's log-normalised genes, and with a kind of image also its channels, selected."""
    slide = stimg.pp.to_image_patches(table, image, mpp=MPP, image_mpp=mpp, n_genes=2).slides[0]
    spots = table[slide.obs_index].copy()
    totals = np.asarray(spots.X.sum(1)).ravel()
    values = sparse.csr_array(spots.X).astype(np.float32)
    values.data = np.log1p(values.data * np.repeat(1e4 / np.maximum(totals, 1), np.diff(values.indptr)))
    genes = anndata.AnnData(sparse.csr_matrix(values), obs=spots.obs, var=spots.var[[]])
    genes.obsm["spatial"], genes.uns = spots.obsm["spatial"], spots.uns
    stimg.pp.select_genes(genes, n_genes=2000, scale="log")
    if not kind:
        stimg.pp.to_lattice(genes, platform="auto" if mpp else "st")
        return genes
    seen = np.maximum(image_values(slide, kind) + SHIFT, 0).astype(np.float32)
    names = [f"{PREFIX}{kind}{i}" for i in range(seen.shape[1])]
    var = pd.DataFrame({"stimg_weight": genes.var["stimg_weight"].max() * 1e6}, index=names)
    both = anndata.AnnData(
        sparse.csr_matrix(sparse.hstack([genes.X, seen])), obs=genes.obs, var=pd.concat([genes.var, var])
    )
    both.obsm["spatial"], both.uns = genes.obsm["spatial"], genes.uns
    stimg.pp.to_lattice(both, platform="auto" if mpp else "st")
    return both


def train(slides: list[anndata.AnnData], *, epochs: int, seed: int, shown: bool) -> Model:
    """Pretrain, with image channels hidden like any other or always shown."""
    n_image = sum(name.startswith(PREFIX) for name in slides[0].var_names)
    patches = stimg.pp.to_patches(slides, n_channels=512 + n_image)
    image_rows = torch.tensor([name.startswith(PREFIX) for name in patches.genes])
    genes_of: dict[str, torch.Tensor] = {}

    def only_genes(batch: object, channel_mask: torch.Tensor, *args: object) -> torch.Tensor:
        hidden = draw_hidden(batch, channel_mask, *args)
        return hidden & ~image_rows[genes_of["genes"]][:, None]

    class Spy(PretrainModule):
        def loss(self, batch: dict[str, torch.Tensor], seed: int) -> torch.Tensor:
            genes_of["genes"] = batch["genes"]
            return super().loss(batch, seed)

    if not shown:
        return stimg.tl.pretrain(patches, max_epochs=epochs, val_fraction=0.0, rng=seed, device="cpu")
    with (
        mock.patch("stimg._train._pretrain.draw_hidden", only_genes),
        mock.patch("stimg._train._pretrain.PretrainModule", Spy),
    ):
        return stimg.tl.pretrain(patches, max_epochs=epochs, val_fraction=0.0, rng=seed, device="cpu")


def predict(table: anndata.AnnData, model: Model, hidden: np.ndarray, judged: np.ndarray, *, shown: bool) -> np.ndarray:
    """Predicted z-scores of judged genes at hidden spots turned to log-normalised values, (n_hidden, n_judged)."""
    if not shown:
        stimg.tl.reconstruct(table, model, hidden=hidden, genes=table.var_names[judged])
        return table.obsm.pop("stimg")[hidden].to_numpy()
    [(slide, rows)], _ = match_slides(table, model, layer=None, scale="log", lattice_key="lattice")
    away = np.zeros(slide.n_sites, dtype=bool)
    away[slide.obs_site[hidden[slide.obs_index]]] = True
    seen = replace(slide, seen=~away)
    image = np.char.startswith(slide.genes.astype(str), PREFIX)
    tokens = site_tokens(model, seen, rows)
    tokens[away] = site_tokens(model, seen, np.where(image, rows, -1))[away]
    states = run_windows(model, seen, tokens, readout="decoder")
    known = np.flatnonzero(rows >= 0)
    values = np.full((slide.n_sites, len(rows)), np.nan, dtype=np.float32)
    out, bias = model.network.gene_out.detach().numpy(), model.network.gene_bias.detach().numpy()
    scores = states @ out[rows[known]].T + bias[rows[known]]
    values[:, known] = np.maximum(scores * seen.std[known] + seen.mean[known], 0)
    of_obs = np.empty((table.n_obs, len(rows)), dtype=np.float32)
    of_obs[slide.obs_index] = values[slide.obs_site]
    return of_obs[np.ix_(hidden, judged)]


def judge(table: anndata.AnnData, model: Model, *, shown: bool) -> Iterator[dict]:
    """Errors in hidden regions over that of the slide's mean, and agreement of domains with labels."""
    gene = ~np.char.startswith(table.var_names.to_numpy().astype(str), PREFIX)
    judged = gene & table.var_names.isin(model.genes) & (table.var["stimg_weight"].to_numpy() > 0)
    measured = sparse.csr_array(table.X)[:, np.flatnonzero(judged)]
    for size, count in REGIONS.items():
        for draw in range(DRAWS):
            try:
                hidden = stimg.metrics.hide_regions(table.obsm["lattice"], size, n_regions=count, rng=draw)
            except ValueError:  # the slide is too small for regions of this size
                break
            truth = measured[np.flatnonzero(hidden)].toarray()
            mean = np.square(truth - measured[np.flatnonzero(~hidden)].mean(0)).mean()
            found = predict(table, model, hidden, judged, shown=shown)
            yield {"score": f"MSE {size} x {size}", "value": np.square(truth - found).mean() / mean}
            near = stimg.metrics.interpolate_hidden(measured, table.obsm["spatial"], hidden, method="gaussian")
            yield {"score": f"gaussian {size} x {size}", "value": np.square(truth - near).mean() / mean}
    if "domain" not in table.obs:
        return
    stimg.tl.embed(table, model, scale="log")
    known = table.obs["domain"].notna().to_numpy()
    for score, key in {"ARI": "X_stimg", "ARI joined": "X_stimg_slide"}.items():
        stimg.tl.domains(table, table.obs["domain"].nunique(), use_rep=key)
        scores = stimg.metrics.domain_scores(table.obs["domain"][known], table.obs["stimg_domain"][known])
        yield {"score": score, "value": scores["ari"]}


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(NAMED))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in args.only:
        mpp = MPP_2K if name == "MOB" else None
        (train_tables, train_images), (test_tables, test_images) = read(RUNS[name][0]), read(RUNS[name][1])
        for kind in IMAGES:
            learned = [fused(*pair, kind, mpp=mpp) for pair in zip(train_tables, train_images, strict=True)]
            judged = [fused(*pair, kind, mpp=None) for pair in zip(test_tables, test_images, strict=True)]
            for shown in (False, True) if kind else (False,):
                method = f"{kind}, {'shown' if shown else 'hidden'}" if kind else "genes"
                for seed in range(args.seeds):
                    model = train(learned, epochs=args.epochs, seed=seed, shown=shown)
                    for table in judged:
                        found = judge(table, model, shown=shown)
                        rows += [{"run": name, "method": method, "seed": seed, **row} for row in found]
                write(rows, args)


def write(rows: list[dict], args: argparse.Namespace) -> None:
    """Write the table of what is there so far."""
    by_seed = pd.DataFrame(rows).groupby(["run", "method", "score", "seed"], sort=False)["value"].mean()
    scores = by_seed.groupby(["run", "method", "score"], sort=False).agg(["mean", "std"]).round(3)
    cells = scores["mean"].map("{:.3f}".format)
    if args.seeds > 1:
        cells += " ± " + scores["std"].map("{:.3f}".format)
    table = cells.unstack("score").reset_index()
    first, rest = __doc__.split("\n\n", 1)
    options = f"--epochs {args.epochs} --seeds {args.seeds} --only " + " ".join(f'"{name}"' for name in args.only)
    spread = f"Mean ± standard deviation over {args.seeds} seeds." if args.seeds > 1 else "One seed."
    text = f"# H&E as further channels\n\n`python benchmarks/fusion.py {options}` (stimg {stimg.__version__})\n\n"
    text += f"{first}\n\n{rest.split(chr(10) * 2, 1)[1]}\n{spread}\n\n"
    Path("benchmarks/results/fusion.md").write_text(f"{text}{table.to_markdown(index=False)}\n")
    print(table.to_string(), flush=True)


if __name__ == "__main__":
    main()
