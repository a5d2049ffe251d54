"""Domains of several sections together, against joint components, Harmony and CellCharter.

    STIMG_DATA_DIR=../shared/data python benchmarks/joint_domains.py benchmarks/weights/tiny-validation.safetensors

Needs harmonypy and cellcharter. Cohorts are labelled sections of one tissue that the weights never saw (`train.py
validation`: they learned labels of one other cortex section, two other hearts and one other breast cancer, none of
mouse cortex and of the olfactory bulb). All sections of a cohort are clustered together, into as many domains as there
are labels, by `stimg.tl.domains` with its defaults; only the embedding differs. "stimg" is that of `stimg.tl.embed` of
the list of sections, "network alone" its `X_stimg`. "PCA + 18 nearest" are 30 components of all sections together,
averaged over the nearest spots; "rings" are 20 with their means over three rings; "Harmony" goes before the averaging
(harmonypy). "CellCharter" aggregates the components after Harmony over three layers of Delaunay neighbours. ARI is over
all spots of the cohort, mean of three seeds of the clustering; "entropy" is that of sections inside domains, from 0 (a
domain of one section) to 1 (as in the whole cohort).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.metrics import adjusted_rand_score

import stimg
from stimg.models import Model

sys.path.append(str(Path(__file__).parent))
from baselines import add_shared_baselines, near_means, ring_means

SEEDS = 3
COHORTS = {
    "human cortex": ("dlpfc/151674", "dlpfc/151675"),
    "fetal heart": (
        "heart_st/3_CN73_D2_HE",
        "heart_st/4_CN73_C2_HE",
        "heart_st/5_CN74_E1_HE",
        "heart_st/6_CN74_E2_HE",
    ),
    "breast cancer": ("her2st/C1", "her2st/D1", "her2st/E1", "her2st/F1"),
    "olfactory bulb": ("mob_st/MOB_rep1", "mob_st/MOB_rep2", "mob_st/MOB_rep11"),
    "mouse cortex": ("starmap_mpfc/20180417_BZ5_control", "starmap_mpfc/20180419_BZ9_control"),
}


def read(names: tuple[str, ...]) -> list[AnnData]:
    """Read the sections of a cohort."""
    slides = []
    for name in names:
        slide = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"{name}.h5ad")
        slide.var_names_make_unique()
        stimg.pp.to_lattice(slide)
        stimg.pp.select_genes(slide, n_genes=min(2000, slide.n_vars))
        slides.append(slide)
    return slides


def harmonised(slides: list[AnnData], key: str) -> list[np.ndarray]:
    """Return an embedding of all slides after Harmony."""
    from harmonypy import run_harmony

    section = pd.DataFrame({"section": np.repeat([f"s{i}" for i in range(len(slides))], [s.n_obs for s in slides])})
    found = run_harmony(np.concatenate([s.obsm[key] for s in slides]), section, ["section"], verbose=False).Z_corr
    found = found if len(found) == len(section) else found.T
    return np.split(np.asarray(found), np.cumsum([s.n_obs for s in slides])[:-1])


def aggregated(slides: list[AnnData], latent: list[np.ndarray]) -> list[np.ndarray]:
    """Aggregate a latent space over neighbours with CellCharter."""
    import cellcharter as cc
    import squidpy as sq

    table = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(sum(map(len, latent)))]))
    table.obs["section"] = pd.Categorical(np.repeat([f"s{i}" for i in range(len(slides))], [s.n_obs for s in slides]))
    table.obsm["spatial"] = np.concatenate([s.obsm["spatial"][:, :2] for s in slides])
    table.obsm["latent"] = np.concatenate(latent).astype(np.float32)
    sq.gr.spatial_neighbors(table, coord_type="generic", delaunay=True, library_key="section")
    cc.gr.remove_long_links(table)
    cc.gr.aggregate_neighbors(table, n_layers=3, use_rep="latent", sample_key="section")
    return np.split(np.asarray(table.obsm["X_cellcharter"]), np.cumsum([s.n_obs for s in slides])[:-1])


def judge(slides: list[AnnData], key: str | None) -> dict[str, float]:
    """ARI and entropy of joint domains."""
    labels = pd.concat([slide.obs["domain"].astype(object) for slide in slides], ignore_index=True)
    known = labels.notna().to_numpy()
    section = np.repeat(np.arange(len(slides)), [slide.n_obs for slide in slides])
    found = []
    for seed in range(SEEDS):
        stimg.tl.domains(slides, labels.nunique(), use_rep=key, rng=seed)
        domains = np.concatenate([slide.obs["stimg_domain"].cat.codes for slide in slides])
        shares = pd.crosstab(domains, section, normalize="columns").to_numpy()
        shares /= shares.sum(1, keepdims=True)
        entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(1) / np.log(len(slides))
        ari = adjusted_rand_score(labels[known].astype(str), domains[known])
        found.append({"ARI": ari, "entropy": np.average(entropy, weights=np.bincount(domains))})
    return pd.DataFrame(found).mean().to_dict()


def main() -> None:
    """Embed and cluster the cohorts in every way, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = Model.load(args.weights)
    rows = []
    for cohort, names in COHORTS.items():
        slides = read(names)
        stimg.tl.embed(slides, model)
        add_shared_baselines(slides)
        pca = harmonised(slides, "PCA, shared")
        ways: dict[str, Callable[[], str | None | list[np.ndarray]]] = {
            "stimg": lambda: None,
            "network alone": lambda: "X_stimg",
            "PCA + 18 nearest": lambda: "PCA + 18 nearest, shared",
            "PCA 20 + rings": lambda: "PCA 20 + rings, shared",
            "Harmony + 18 nearest": lambda: [near_means(v, s) for v, s in zip(pca, slides, strict=True)],  # noqa: B023
            "Harmony 20 + rings": lambda: [ring_means(v[:, :20], s) for v, s in zip(pca, slides, strict=True)],  # noqa: B023
            "CellCharter, Harmony": lambda: aggregated(slides, pca),  # noqa: B023
        }
        for method, way in ways.items():
            found = way()
            if isinstance(found, list):
                for slide, values in zip(slides, found, strict=True):
                    slide.obsm["peer"] = values
                found = "peer"
            rows.append({"cohort": cohort, "method": method, **judge(slides, found)})
            print(rows[-1], flush=True)
    table = pd.DataFrame(rows)
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(cohort="mean")
    table = pd.concat([table, mean]).round(3)
    text = f"# Domains of several sections together\n\n{__doc__.split(chr(10), 2)[2]}\n(stimg {stimg.__version__})\n\n"
    (Path(__file__).parent / "results" / "joint_domains.md").write_text(text + table.to_markdown(index=False) + "\n")


if __name__ == "__main__":
    main()
