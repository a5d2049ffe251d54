"""Expression predicted from H&E of patients, sections and arrays that were not trained on.

    STIMG_DATA_DIR=../shared/data python benchmarks/expression.py [--epochs 60] [--only NAME ...]

HER2+ breast cancer, legacy ST: patient A (A1, A2) to patient C (C2 to C6), C to A, and half of patient C's sections to
the other half, both ways. Mouse olfactory bulb: MOB1 to 3 (2K array) to MOB_rep11 (legacy ST), over shared genes. 250
genes of the highest mean in the training slides, log-normalised counts. All methods see the same crops at 2 um per
pixel, in the same run: "mean of training"; "ridge, untrained" and "ridge, trained": HEST-Bench's regression
(standardise, 256 principal components, ridge with alpha = 100 / (components x genes)) of pooled features of each spot's
crop (192 um) by the bundled encoder before and after stimg's training; "ridge, colours": ridge, its penalty by cross-
validation, of the mean and deviation of those crops' three colours; "spot-wise CNN": that encoder, pooled over the same
crops, trained with the same loss, epochs and augmentation (as ST-Net); "stimg": `stimg.tl.train_expression` and
`predict_expression` with their defaults. PCC@F, @S, @M: first quartile, median and mean over genes of the Pearson
correlation over all test spots; PCC@H: mean over the 50 best-ranked genes (chosen with the test truth, so optimistic);
"smoothed": PCC@M against measured values averaged over the 3 x 3 array neighbourhood. Seconds are those of training.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import stimg
from stimg._train._expression import standard_targets
from stimg._train._images import jitter_colours
from stimg._train._module import TrainingModule
from stimg._train._run import Run
from stimg.nn import ConvEncoder, DenseConfig
from stimg.nn._losses import uncorrelated

DATA = Path(os.environ["STIMG_DATA_DIR"])
C = [f"her2st/C{i}" for i in (2, 3, 4, 5, 6)]
RUNS = {
    "A to C": (["her2st/A1", "her2st/A2"], C),
    "C to A": (C, ["her2st/A1", "her2st/A2"]),
    "C2-C4 to C5-C6": (C[:3], C[3:]),
    "C5-C6 to C2-C4": (C[3:], C[:3]),
    "MOB": ([f"mousebrain_2k_HE/MOB{i}" for i in (1, 2, 3)], ["mob_st/MOB_rep11"]),
}
MPP = 2.0
MPP_2K = 4.2  # pitch of the 2K array, about 150 um, over its 35.5 pixels; no resolution is published
CROP = 96
SCORES = ["pcc_f", "pcc_s", "pcc_m", "pcc_h", "mse", "mae"]


def read(names: list[str]) -> tuple[list[anndata.AnnData], list[Path]]:
    """Read slides and the paths of their images."""
    slides = [anndata.read_h5ad(DATA / f"{name}.h5ad") for name in names]
    for slide in slides:
        slide.var_names_make_unique()
        stimg.pp.to_lattice(slide, platform="auto" if "2k" in names[0] else "st")
    return slides, [DATA / f"{name}_HE.jpg" for name in names]


def spot_crops(slide: object) -> torch.Tensor:
    """Crop around each spot, uint8 (n_spots, 3, CROP, CROP)."""
    half = CROP / 2 * MPP
    crops = [slide.image.read(y - half, x - half, (CROP, CROP), MPP) for y, x in slide.centres]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()


class SpotNetwork(nn.Module):
    """The encoder, pooled over a spot's crop, and a linear head."""

    def __init__(self, n_genes: int) -> None:
        super().__init__()
        self.encoder = ConvEncoder()
        self.dropout = nn.Dropout(DenseConfig().dropout)
        self.head = nn.Linear(self.encoder.channels[-1], n_genes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Predict standardised expression of crops in [0, 1]."""
        return self.head(self.dropout(self.encoder(images)[-1].mean((2, 3))))


class SpotModule(TrainingModule):
    """Spot-wise regression with stimg's loss and colours."""

    sample = 0

    def loss(self, batch: list[torch.Tensor], seed: int) -> torch.Tensor:
        """Loss of a batch of crops, each turned at random."""
        images, truth = batch[0].float() / 255, batch[1]
        generator = torch.Generator().manual_seed(seed)
        images = jitter_colours(images, self.recipe.colour_jitter, generator)
        turns = torch.randint(8, (1,), generator=generator).item()
        images = torch.rot90(images.flip(3) if turns > 3 else images, turns % 4, (2, 3))
        predicted = self.network(images)
        return functional.mse_loss(predicted, truth) + self.recipe.pearson_loss * uncorrelated(predicted, truth)


def spot_wise(crops: torch.Tensor, patches: object, test: torch.Tensor, epochs: int, *, seed: int = 0) -> np.ndarray:
    """Train on spots' crops one by one and predict."""
    torch.manual_seed(seed)
    mean, sd, _ = standard_targets(patches, 0)
    truth = (torch.from_numpy(np.concatenate([s.targets for s in patches.slides])) - mean) / sd
    network = SpotNetwork(len(patches.genes))
    loader = DataLoader(TensorDataset(crops, truth), 128, shuffle=True)
    run = Run(max_epochs=epochs, device="cpu", rng=seed)
    run.fit(SpotModule(network, DenseConfig(), run), loader, None)
    with torch.no_grad():
        found = torch.cat([network(part.float() / 255) for part in test.split(256)])
    return (found * sd + mean).numpy()


def pooled(encoder: nn.Module, crops: torch.Tensor) -> np.ndarray:
    """Mean and deviation of every level of the pyramid over each crop."""
    with torch.no_grad():
        levels = [encoder(part.float() / 255) for part in crops.split(256)]
    return np.concatenate(
        [torch.cat([torch.cat([x.mean((2, 3)), x.std((2, 3))], 1) for x in part], 1).numpy() for part in levels]
    )


def ridge(encoder: nn.Module, crops: torch.Tensor, targets: np.ndarray, test: torch.Tensor) -> np.ndarray:
    """HEST-Bench's regression on frozen features."""
    features = pooled(encoder, crops)
    n_components = min(256, *features.shape)
    alpha = 100 / (n_components * targets.shape[1])
    model = make_pipeline(StandardScaler(), PCA(n_components, random_state=0), Ridge(alpha=alpha))
    return model.fit(features, targets).predict(pooled(encoder, test))


def run(name: str, epochs: int) -> list[dict]:
    """Train on some slides, predict others, score all methods."""
    (train, train_images), (test, test_images) = read(RUNS[name][0]), read(RUNS[name][1])
    shared = sorted(set.intersection(*(set(slide.var_names) for slide in (*train, *test))))
    train = [slide[:, shared].copy() for slide in train] if name == "MOB" else train
    options = {"mpp": MPP, "n_genes": 250, "stride": 256, "image_mpp": MPP_2K if name == "MOB" else None}
    patches = stimg.pp.to_image_patches(train, train_images, names=RUNS[name][0], **options)
    judged = stimg.pp.to_image_patches(test, test_images, names=RUNS[name][1], mpp=MPP, genes=list(patches.genes))
    truth = np.concatenate([slide.targets for slide in judged.slides])
    smooth = np.concatenate(
        [
            stimg.metrics.smooth_expression(slide.targets, table.obsm["lattice"][slide.obs_index])
            for slide, table in zip(judged.slides, test, strict=True)
        ]
    )
    crops = torch.cat([spot_crops(slide) for slide in patches.slides])
    test_crops = torch.cat([spot_crops(slide) for slide in judged.slides])
    targets = np.concatenate([slide.targets for slide in patches.slides])
    known = np.isfinite(truth).all(0)
    predicted, seconds = {"mean of training": np.broadcast_to(targets.mean(0), truth.shape)}, {}
    torch.manual_seed(0)
    predicted["ridge, untrained"] = ridge(ConvEncoder().eval(), crops, targets, test_crops)
    colours = [torch.cat([x.float().mean((2, 3)), x.float().std((2, 3))], 1).numpy() for x in (crops, test_crops)]
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 13))).fit(colours[0], targets)
    predicted["ridge, colours"] = model.predict(colours[1])
    started = time.perf_counter()
    predicted["spot-wise CNN"] = spot_wise(crops, patches, test_crops, epochs)
    seconds["spot-wise CNN"] = time.perf_counter() - started
    started = time.perf_counter()
    model = stimg.tl.train_expression(patches, max_epochs=epochs, device="cpu")
    seconds["stimg"] = time.perf_counter() - started
    predicted["ridge, trained"] = ridge(model.network.encoder, crops, targets, test_crops)
    found = []
    for table, image, slide in zip(test, test_images, judged.slides, strict=True):
        stimg.tl.predict_expression(table, model, image)
        found.append(table.obsm["stimg_image"].iloc[slide.obs_index][list(patches.genes[known])].to_numpy())
    predicted["stimg"] = np.concatenate(found)
    folds = np.repeat(RUNS[name][1], [len(slide.targets) for slide in judged.slides])
    rows = []
    for method, values in predicted.items():
        values = values if method == "stimg" else values[:, known]
        scores = stimg.metrics.expression_scores(truth[:, known], values)
        ranked = stimg.metrics.expression_scores(truth[:, known], values, folds=folds)["pcc_h"]
        scores |= {"pcc_h": ranked, "smoothed": stimg.metrics.expression_scores(smooth[:, known], values)["pcc_m"]}
        rows.append({"run": name, "method": method, **scores, "seconds": seconds.get(method)})
        print(
            {key: value if isinstance(value, str) else round(value or 0, 3) for key, value in rows[-1].items()},
            flush=True,
        )
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", nargs="+", default=list(RUNS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expression.md"))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    table = pd.DataFrame([row for name in args.only for row in run(name, args.epochs)])
    table = table[["run", "method", *SCORES, "smoothed", "n_genes", "n_genes_constant", "seconds"]]
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(run="mean")
    table = pd.concat([table, mean]).round(3)
    command = f"python benchmarks/expression.py --epochs {args.epochs}"
    text = f"# Expression from H&E\n\n`{command}` (stimg {stimg.__version__})\n\n"
    args.out.write_text(text + __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
