"""Other methods of spatial domains, each trained on the slide itself with the settings of its authors' tutorial.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers/requirements.txt
    STIMG_DATA_DIR=../shared/data peers/bin/python benchmarks/peers/run.py --seeds 5

Runs without stimg. Every method, slide and seed is a process of its own, so that seconds (data in memory to embedding)
and peak memory (of the whole process) are its own. Embeddings and the labels of the method's own clustering go to
`benchmarks/peers/out/`, where `benchmarks/pretrain/judge.py` finds them; what is there already is not run again. glibc
is told to keep freed memory, which saves GraphST's dense matrices half of their time.

- GraphST: all defaults (600 epochs, 3,000 genes). Own labels: R's mclust EEE on 20 components, then its refinement over
  50 spots, where `Rscript` and mclust are installed.
- SpaGCN: its easy mode without histology; own labels are its clusters, its embedding is that of its network.
- BANKSY: lambda 0.2 and 0.8, 2,000 genes, 20 components of its matrix.
- CellCharter: 30 principal components of 2,000 genes aggregated over three layers of Delaunay neighbours; own labels
  are those of its mixture.

STAGATE, also asked for, is on no package index (neither `STAGATE` nor `STAGATE_pyG`), so it was not run.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc

HERE = Path(__file__).parent
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
FEW_COUNTS = 500
METHODS = ("GraphST", "SpaGCN", "BANKSY 0.2", "BANKSY 0.8", "CellCharter")


def normalise(slide: anndata.AnnData, n_genes: int | None = 2000) -> anndata.AnnData:
    """Log-normalise, and keep the most variable genes where there are more."""
    sc.pp.normalize_total(slide, target_sum=1e4)
    sc.pp.log1p(slide)
    if n_genes is None or slide.n_vars <= n_genes:
        return slide
    sc.pp.highly_variable_genes(slide, n_top_genes=n_genes)
    return slide[:, slide.var["highly_variable"]].copy()


def graphst(slide: anndata.AnnData, n_domains: int, seed: int) -> tuple:
    """Embed with GraphST; cluster with mclust and refine, as its tutorial does."""
    from GraphST import GraphST
    from GraphST.utils import refine_label
    from mclust import mclust
    from sklearn.decomposition import PCA

    started = time.perf_counter()
    if slide.n_vars > 3000 and slide.X.sum(1).mean() < FEW_COUNTS:  # its choice of genes fails on so few counts
        slide = normalise(slide, 3000)
    elif slide.n_vars <= 3000:
        slide = normalise(slide, None)
    if slide.n_vars <= 3000:
        sc.pp.scale(slide, zero_center=False, max_value=10)
        slide.var["highly_variable"] = True
    embedding = GraphST.GraphST(slide, random_seed=seed).train().obsm["emb"]
    seconds = time.perf_counter() - started
    labels = mclust(PCA(min(20, *embedding.shape), random_state=42).fit_transform(embedding), n_domains)
    if labels is not None:
        slide.obs["mclust"] = labels
        labels = np.asarray(refine_label(slide, 50, key="mclust"))
    return embedding, labels, seconds


def spagcn(slide: anndata.AnnData, n_domains: int, seed: int) -> tuple:
    """Search the resolution, train and cluster with SpaGCN, from coordinates alone."""
    import SpaGCN
    import torch

    started = time.perf_counter()
    slide = normalise(slide, None)
    slide.X = slide.X.toarray()  # its own way with sparse matrices needs an older scipy
    x, y = slide.obsm["spatial"].T.tolist()
    adjacency = SpaGCN.calculate_adj_matrix(x=x, y=y, histology=False)
    scale = SpaGCN.search_l(0.5, adjacency, start=0.01, end=1000, tol=0.01, max_run=100)
    seeds = {"r_seed": seed, "t_seed": seed, "n_seed": seed}
    options = {"start": 0.7, "step": 0.1, "tol": 5e-3, "lr": 0.05, "max_epochs": 20}
    resolution = SpaGCN.search_res(slide, adjacency, scale, n_domains, **options, **seeds)
    random.seed(seed)
    torch.manual_seed(seed)
    np.random.seed(seed)
    network = SpaGCN.SpaGCN()
    network.set_l(scale)
    options = {"init_spa": True, "init": "louvain", "res": resolution, "tol": 5e-3, "lr": 0.05, "max_epochs": 200}
    network.train(slide, adjacency, **options)
    labels = np.asarray(network.predict()[0])
    embedding = network.model.predict(network.embed, network.adj_exp)[0].detach().numpy()
    return embedding, labels, time.perf_counter() - started


def banksy(slide: anndata.AnnData, mixing: float) -> tuple:
    """Embed with BANKSY; its clusters are Leiden's, of no fixed number, and are not taken."""
    from banksy.embed_banksy import generate_banksy_matrix
    from banksy.initialize_banksy import initialize_banksy
    from sklearn.decomposition import PCA

    started = time.perf_counter()
    slide = normalise(slide)
    slide.obs["x"], slide.obs["y"] = slide.obsm["spatial"].T
    no_plots = dict.fromkeys(("plt_edge_hist", "plt_nbr_weights", "plt_agf_angles", "plt_theta"), False)
    graphs = initialize_banksy(slide, ("x", "y", "spatial"), num_neighbours=15, max_m=1, **no_plots)
    matrix = generate_banksy_matrix(slide, graphs, [mixing], 1, verbose=False)[1].X
    matrix = np.nan_to_num(matrix.toarray() if hasattr(matrix, "toarray") else np.asarray(matrix))
    embedding = PCA(min(20, *matrix.shape), random_state=0).fit_transform(matrix)
    return embedding, None, time.perf_counter() - started


def cellcharter(slide: anndata.AnnData, n_domains: int, seed: int) -> tuple:
    """Aggregate components over neighbours and cluster, with CellCharter."""
    import cellcharter as cc
    import squidpy as sq

    started = time.perf_counter()
    slide = normalise(slide)
    sc.pp.scale(slide, max_value=10)
    sc.pp.pca(slide, n_comps=min(30, slide.n_vars - 1, slide.n_obs - 1))
    sq.gr.spatial_neighbors(slide, coord_type="generic", delaunay=True)
    cc.gr.remove_long_links(slide)
    cc.gr.aggregate_neighbors(slide, n_layers=3, use_rep="X_pca")
    embedding = np.asarray(slide.obsm["X_cellcharter"], dtype=np.float32)
    seconds = time.perf_counter() - started
    slide.obsm["X_cellcharter"] = embedding
    try:
        model = cc.tl.Cluster(n_clusters=n_domains, random_state=seed)
        model.fit(slide, use_rep="X_cellcharter")
        labels = np.asarray(model.predict(slide, use_rep="X_cellcharter")).astype(int)
    except Exception as error:  # noqa: BLE001 - its mixture fails on slides with few spots
        print("CellCharter's mixture:", error)
        labels = None
    return embedding, labels, seconds


def run_one(method: str, path: Path, seed: int, out: Path) -> None:
    """Run one method on one slide in this process."""
    sys.path.append(str(HERE.parent))
    warnings.simplefilter("ignore")
    slide = anndata.read_h5ad(path)
    slide.var_names_make_unique()
    slide.X = slide.X.astype(np.float32)
    n_domains = slide.obs["domain"].nunique()
    if method == "GraphST":
        embedding, labels, seconds = graphst(slide, n_domains, seed)
    elif method == "SpaGCN":
        embedding, labels, seconds = spagcn(slide, n_domains, seed)
    elif method == "CellCharter":
        embedding, labels, seconds = cellcharter(slide, n_domains, seed)
    else:
        embedding, labels, seconds = banksy(slide, float(method.split()[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"embedding": np.asarray(embedding, dtype=np.float32), "seconds": seconds, "peak_mb": peak}
    if labels is not None:
        found["labels"] = np.asarray(labels).astype(str)
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **found)


def main() -> None:
    """Run all methods on all slides, or one of them in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--slides", nargs="+", help="by default the labelled slides held out in slides.toml")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--one", nargs=4, metavar=("METHOD", "SLIDE", "SEED", "OUT"))
    args = parser.parse_args()
    data = Path(os.environ["STIMG_DATA_DIR"])
    if args.one:
        method, slide, seed, out = args.one
        run_one(method, data / f"{slide}.h5ad", int(seed), Path(out))
        return
    entries = tomllib.loads((HERE.parent / "pretrain" / "slides.toml").read_text())["slide"]
    slides = args.slides or [e["file"] for e in entries if e.get("held_out") and e.get("labels")]
    for seed in range(args.seeds):
        for method in args.methods:
            for slide in slides:
                out = HERE / "out" / method / slide.replace("/", "-") / f"{seed}.npz"
                if out.exists() or (seed and method.startswith("BANKSY")):
                    continue
                command = [sys.executable, __file__, "--one", method, slide, str(seed), str(out)]
                done = subprocess.run(command, capture_output=True, text=True, env=os.environ | KEEP_MEMORY)
                print(method, slide, seed, "ok" if out.exists() else done.stderr[-500:], flush=True)


if __name__ == "__main__":
    main()
