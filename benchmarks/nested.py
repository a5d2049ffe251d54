"""Nested domains: finer ones split from coarser ones, or coarser ones merged from finer ones.

    STIMG_DATA_DIR=../shared/data python benchmarks/nested.py

Labelled slides of the training and validation sets, embedded with the bundled weights (which learned the labels of most
of them). ARI with the experts' labels, of as many domains as they drew, if this number is the first, the middle or the
last of three levels; "direct" is the usual clustering into this number. Top-down is what `stimg.tl.domains(levels=...)`
does. Bottom-up clusters into the largest number and merges domains by Ward's method, on centroids in the metric of the
covariance within domains.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist

import stimg
from stimg._cluster._features import principal_components

SLIDES = (
    *("heart_st/1_CN73_E1_HE", "heart_st/2_CN73_E2_HE_", "heart_st/3_CN73_D2_HE", "heart_st/4_CN73_C2_HE"),
    *("her2st/A1", "her2st/C1", "her2st/D1", "mob_st/MOB_rep1", "mob_st/MOB_rep2"),
    *("starmap_mpfc/20180417_BZ5_control", "dlpfc/151673", "dlpfc/151674"),
)


def merged(values: np.ndarray, labels: np.ndarray, number: int) -> np.ndarray:
    """Merge domains (Ward 1963, J Am Stat Assoc 58:236) until this number is left."""
    labels = labels.copy()
    names = np.unique(labels)
    means = np.stack([values[labels == name].mean(0) for name in names])
    offset = values - means[labels]
    spread = offset.T @ offset / len(values)
    white = values @ np.linalg.cholesky(np.linalg.inv(spread + 1e-9 * np.trace(spread) * np.eye(len(spread))))
    while len(names := np.unique(labels)) > number:
        size = np.array([(labels == name).sum() for name in names])
        means = np.stack([white[labels == name].mean(0) for name in names])
        cost = cdist(means, means, "sqeuclidean") * np.outer(size, size) / np.add.outer(size, size)
        np.fill_diagonal(cost, np.inf)
        one, other = divmod(int(cost.argmin()), len(names))
        labels[labels == names[other]] = names[one]
    return labels


def judge(name: str) -> dict:
    """ARI of both ways, at each place among the levels."""
    slide = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"{name}.h5ad")
    slide.var_names_make_unique()
    stimg.pp.to_lattice(slide)
    stimg.tl.embed(slide)
    truth = slide.obs["domain"]
    number = int(truth.nunique())
    values = principal_components(slide.obsm["X_stimg_slide"].astype(np.float64), 15)

    def ari(labels: np.ndarray | pd.Series) -> float:
        return stimg.metrics.domain_scores(truth, labels)["ari"]

    stimg.tl.domains(slide, number)
    row = {"slide": name, "labelled": number, "direct": ari(slide.obs["stimg_domain"])}
    first = max(2, number - 2)
    for place, levels in {
        "first": (number, number + 2, number + 4),
        "middle": (first, number, number + 3),
        "last": (max(2, number - 3), number - 1, number),
    }.items():
        levels = tuple(sorted(set(levels)))
        stimg.tl.domains(slide, levels=levels)
        row[f"top-down, {place}"] = ari(slide.obs[f"stimg_domain_{number}"])
        stimg.tl.domains(slide, levels[-1], key_added="finest")
        row[f"bottom-up, {place}"] = ari(merged(values, slide.obs["finest"].cat.codes.to_numpy(), number))
    print(row, flush=True)
    return row


def main() -> None:
    """Judge the slides and write the table."""
    warnings.simplefilter("ignore")
    found = pd.DataFrame([judge(name) for name in SLIDES]).set_index("slide")
    mean = found.mean().rename("mean").to_frame().T
    parts = []
    for place in ("first", "middle", "last"):
        apart = found[f"top-down, {place}"] - found[f"bottom-up, {place}"]
        parts.append(f"{place} {apart.mean():+.3f} (standard error {apart.sem():.3f})")
    text = f"# Nested domains\n\n`python benchmarks/nested.py` (stimg {stimg.__version__})\n\n"
    text += __doc__.split("\n", 4)[4] + "\n"
    text += pd.concat([found, mean]).round(2).to_markdown() + "\n\n"
    text += f"Top-down less bottom-up: {', '.join(parts)}.\n"
    (Path(__file__).parent / "results" / "nested.md").write_text(text)


if __name__ == "__main__":
    main()
