"""Hidden regions: a trained network against interpolation, on slides that it was not trained on.

    STIMG_DATA_DIR=../shared/data python benchmarks/reconstruction.py [--config tiny] [--max-epochs 20]
    STIMG_DATA_DIR=../shared/data python benchmarks/reconstruction.py --weights WEIGHTS

The first trains on two sections of DLPFC and judges the third, for each of the three; the second judges pretrained
weights on the slides marked `held_out` in `pretrain/slides.toml`. Non-overlapping square regions of 2, 4, 8 and 14
sites (40, 20, 6 and 3 of them at most; 3 draws) are hidden from the network and from the baselines alike; judged are
the 2,000 selected genes of the slide that the network knows, on log-normalised expression of the hidden spots.
Baselines: mean of the 6 nearest seen spots, Gaussian kernel (1.5 pitches), the same in 30 principal components, the
slide's mean over seen spots, and zero. Three bounds: "nugget" is what is left of the variogram of the measured values
at no distance (twice the value at one pitch less that at two; geostatistics' nugget): what a spot does not share even
with its neighbours, and so the error of a method that knows the smooth tissue exactly; it is of the whole slide. "Own
components" is told the hidden spots' own expression, through 30 principal components of the seen spots (which fit part
of its noise too). "Noise alone" is the error that is left to a predictor that knows the expected counts: hidden counts
are drawn anew from Poisson distributions around the interpolation by principal components (with each spot's total), and
judged against their mean.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from dlpfc import SECTIONS, load_sections, trained_model
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA

import stimg
from stimg._slide._values import log_normalise
from stimg.models import Model

REGIONS = {2: 40, 4: 20, 8: 6, 14: 3}
DRAWS = 3
NOISE_DRAWS = 20


def dlpfc_pairs(config: str, max_epochs: int) -> Iterator[tuple[str, AnnData, Model]]:
    """Every section, with a model of the two others."""
    sections = load_sections()
    for test in SECTIONS:
        yield test, sections[test], trained_model(sections, test, config=config, max_epochs=max_epochs, seed=0)


def held_out_pairs(weights: str) -> Iterator[tuple[str, AnnData, Model]]:
    """Every slide that the weights never saw."""
    sys.path.append(str(Path(__file__).parent / "pretrain"))
    from train import read_slides

    for entry in read_slides("held_out"):
        yield entry["file"], entry["adata"], Model.load(weights)


def noise_error(expected: np.ndarray, totals: np.ndarray, target_sum: float) -> float:
    """Mean squared error of log-normalised Poisson counts around their own mean."""
    rates = np.expm1(np.maximum(expected, 0)) * (totals / target_sum)[:, None]
    rng = np.random.default_rng(0)
    drawn = [np.log1p(rng.poisson(rates) * (target_sum / totals)[:, None]) for _ in range(NOISE_DRAWS)]
    return float(np.var(drawn, axis=0, ddof=1).mean())


def nugget(measured: sparse.csr_array, slide: AnnData) -> float:
    """Mean over the genes of their variogram at no distance, on a straight line through one and two pitches."""
    tree = cKDTree(slide.obsm["spatial"] / slide.uns["stimg"]["lattice"]["pitch"])
    near, far = tree.query_pairs(1.25, output_type="ndarray"), tree.query_pairs(2.25, output_type="ndarray")
    apart = np.linalg.norm(np.subtract(*tree.data[far.T]), axis=1)
    dense = measured.toarray()
    values = [np.square(np.subtract(*dense[pairs.T])).mean() / 2 for pairs in (near, far[apart > 1.9])]
    return float(2 * values[0] - values[1])


def judge(slide: AnnData, model: Model) -> Iterator[dict]:
    """Errors of the network and the baselines on every size and draw of regions."""
    judged = slide.var_names.isin(model.genes) & (slide.var["stimg_weight"].to_numpy() > 0)
    target_sum = model.card["target_sum"]
    measured = log_normalise(sparse.csr_array(slide.X), target_sum)[:, np.flatnonzero(judged)]
    totals = np.asarray(slide.X.sum(1)).ravel()
    smooth = nugget(measured, slide)
    for size, count in REGIONS.items():
        for draw in range(DRAWS):
            try:
                hidden = stimg.metrics.hide_regions(slide.obsm["lattice"], size, n_regions=count, rng=draw)
            except ValueError as error:  # the slide is too small for regions of this size
                print(error)
                break
            hidden &= totals > 0
            truth = measured[np.flatnonzero(hidden)]
            stimg.tl.reconstruct(slide, model, hidden=hidden, genes=slide.var_names[judged])
            filled = {"stimg": slide.obsm["stimg"][hidden].to_numpy()}
            for method in ("nearest", "gaussian", "pca", "zero"):
                filled[method] = stimg.metrics.interpolate_hidden(
                    measured, slide.obsm["spatial"], hidden, method=method
                )
            mean = np.asarray(measured[np.flatnonzero(~hidden)].mean(0)).ravel()
            filled["slide mean"] = np.tile(mean, (truth.shape[0], 1))
            for method, values in filled.items():
                scores = stimg.metrics.reconstruction_scores(truth, values)
                yield {"size": size, "method": method, **{name: scores[name] for name in ("mse", "mae", "pearson")}}
            seen = measured[np.flatnonzero(~hidden)].toarray()
            components = PCA(min(30, *seen.shape), random_state=0).fit(seen)
            oracle = components.inverse_transform(components.transform(truth.toarray()))
            yield {"size": size, "method": "nugget", "mse": smooth}
            yield {"size": size, "method": "own components", "mse": np.square(truth.toarray() - oracle).mean()}
            noise = noise_error(filled["pca"], totals[hidden], target_sum)
            yield {"size": size, "method": "noise alone", "mse": noise}


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--weights")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    if args.weights:
        pairs, options, name = held_out_pairs(args.weights), f"--weights {args.weights}", "reconstruction_pretrained"
    else:
        pairs, name = dlpfc_pairs(args.config, args.max_epochs), "reconstruction"
        options = f"--config {args.config} --max-epochs {args.max_epochs}"
    rows = []
    for slide_name, slide, model in pairs:
        rows += [{"slide": slide_name, **row} for row in judge(slide, model)]
        print(slide_name, flush=True)
    by_slide = pd.DataFrame(rows).groupby(["slide", "size", "method"], sort=False)[["mse", "mae", "pearson"]].mean()
    table = by_slide.groupby(["size", "method"], sort=False).mean().reset_index()
    table["slides"] = by_slide.groupby(["size", "method"], sort=False).size().to_numpy()
    title = "Hidden regions" + (" of slides that pretrained weights never saw" if args.weights else " of DLPFC")
    text = f"# {title}\n\n`python benchmarks/reconstruction.py {options}` (stimg {stimg.__version__})\n\n"
    text += f"{__doc__.split(chr(10), 5)[5]}\nMean over the slides and {DRAWS} draws:\n\n"
    Path(f"benchmarks/results/{name}.md").write_text(f"{text}{table.round(4).to_markdown(index=False)}\n")
    print(table.round(4).to_string())


if __name__ == "__main__":
    main()
