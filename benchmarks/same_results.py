"""Results on a fixed set of slides, kept by one version of stimg and compared by another.

    STIMG_DATA_DIR=../shared/data OMP_NUM_THREADS=1 python benchmarks/same_results.py keep before.npz
    STIMG_DATA_DIR=../shared/data OMP_NUM_THREADS=1 python benchmarks/same_results.py compare before.npz

`keep` runs every step (lattice, genes, patches, training, embedding, domains, reconstruction, expression from H&E,
alignment) and writes what each returns; `compare` runs them again and prints one row a result: equal bytes, or the
largest difference. Only public functions are called, so that the code behind them may move.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import stimg

SLIDES = {
    "dlpfc/151673": 7,
    "her2st/E1": 5,
    "starmap_mpfc/20180419_BZ9_control": 4,
    "mob_st/MOB_rep11": 5,
    "slideseq_cerebellum/cerebellum_sepal": 6,
}
SMALL = stimg.nn.Config(dim=32, encoder_layers=1, heads=2, n_programs=8)
STEPS = {"max_epochs": 1, "max_steps": 6, "device": "cpu", "rng": 0}


def expression_results(folder: Path) -> dict[str, np.ndarray]:
    """Lattice, genes, embedding, domains and reconstruction of real slides."""
    found: dict[str, np.ndarray] = {}
    for path, n_domains in SLIDES.items():
        slide = ad.read_h5ad(folder / f"{path}.h5ad")
        stimg.pp.to_lattice(slide)
        stimg.pp.select_genes(slide, 1000)
        stimg.tl.embed(slide, device="cpu")
        stimg.tl.domains(slide, n_domains, rng=0)
        stimg.tl.domains(slide, n_domains, method="kmeans", refine=6, key_added="kmeans", rng=0)
        if slide.n_obs < 1000:
            stimg.tl.domains(slide, n_domains, method="leiden", key_added="leiden", rng=0)
            found[f"{path} leiden"] = slide.obs["leiden"].astype(int).to_numpy()
        stimg.tl.reconstruct(slide, device="cpu")
        found |= {f"{path} {name}": np.asarray(slide.obsm[name]) for name in ("lattice", "X_stimg", "X_stimg_slide")}
        found[f"{path} weights"] = slide.var["stimg_weight"].to_numpy()
        found |= {f"{path} {key}": slide.obs[key].astype(int).to_numpy() for key in ("stimg_domain", "kmeans")}
        found[f"{path} reconstruction"] = np.asarray(slide.obsm["stimg"])[:, ::50]
    return found


def synthetic_results() -> dict[str, np.ndarray]:
    """Everything that has no real slide here: sections in one object, Leiden, Moran's I, training."""
    slides = [stimg.datasets.synthetic("visium", n_obs=400, n_genes=120, seed=seed) for seed in (0, 1)]
    both = ad.concat(slides, label="section", keys=["a", "b"], index_unique="-")
    stimg.pp.to_lattice(both, library_key="section")
    stimg.pp.select_genes(both, 60, method="moran", library_key="section")
    patches = stimg.pp.to_patches(both, 8, n_channels=32, label_key="domain")
    model = stimg.tl.pretrain(patches, SMALL, **STEPS)
    stimg.tl.embed(both, model, device="cpu")
    stimg.tl.domains(both, 5, method="leiden", library_key="section", rng=0)
    hidden = both.obs["array_row"].to_numpy() < 8
    stimg.tl.reconstruct(both, model, hidden=hidden, device="cpu")
    found = {f"patch {name}": part.numpy() for name, part in patches[2, 3].items()}
    found["moran"] = both.var["stimg_weight"].to_numpy()
    found |= {f"weights {name}": part.detach().numpy() for name, part in model.network.state_dict().items()}
    found |= {f"sections {name}": np.asarray(both.obsm[name]) for name in ("lattice", "X_stimg", "X_stimg_slide")}
    found["sections leiden"] = both.obs["stimg_domain"].astype(int).to_numpy()
    found["sections reconstruction"] = np.asarray(both.obsm["stimg"])
    return found


def image_results() -> dict[str, np.ndarray]:
    """Expression from H&E and alignment, on synthetic slides whose images tell their expression."""
    slides = [stimg.datasets.synthetic_histology(n_rows=8, n_cols=8, n_genes=20, seed=seed) for seed in (0, 1, 2)]
    for slide in slides:
        stimg.pp.to_lattice(slide, platform="st")
    patches = stimg.pp.to_image_patches(slides[:2], n_genes=12, size=128)
    item = patches[1, 0]
    found = {f"crop {name}": part.numpy() for name, part in item.items()}
    model = stimg.tl.train_expression(patches, **STEPS)
    stimg.tl.predict_expression(slides[2], model, dense=[str(model.genes[0])], device="cpu")
    found["predicted"] = np.asarray(slides[2].obsm["stimg_image"])
    found["map"] = slides[2].uns["stimg"]["expression_map"]["map"]
    stimg.pp.select_genes(slides[0], 15)
    own = stimg.tl.pretrain(stimg.pp.to_patches(slides[0], 4, n_channels=10), SMALL, **STEPS)
    for kind in ("mlp", "tuned"):
        spatial = own if kind == "tuned" else None
        crops = stimg.pp.to_image_patches(slides[:2], n_genes=12, size=128, spatial_model=spatial)
        config = stimg.nn.AlignConfig(gene_encoder=kind, batch_size=32)
        encoder = "stimg-conv" if kind == "mlp" else None
        aligned = stimg.tl.align(crops, config, encoder=encoder, crop_size=64, **STEPS)
        stimg.tl.embed_pairs(slides[2], aligned, device="cpu")
        found |= {f"{kind} {name}": np.asarray(slides[2].obsm[name]) for name in ("X_stimg_image", "X_stimg_gene")}
    return found


def main() -> None:
    """Keep or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("keep", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, help="write the table as markdown")
    args = parser.parse_args()
    logging.getLogger("stimg").setLevel(logging.ERROR)
    stimg.settings.progress = False
    # Training first: what ran before it in the process can move its last bits.
    found = synthetic_results() | image_results() | expression_results(Path(os.environ["STIMG_DATA_DIR"]))
    if args.what == "keep":
        np.savez_compressed(args.file, **found)
        return
    rows = []
    with np.load(args.file) as before:
        for name in sorted({*before.files, *found}):
            old, new = before.get(name), found.get(name)
            if old is None or new is None or old.shape != new.shape:
                rows.append({"result": name, "same bytes": "missing or another shape"})
                continue
            row = {"result": name, "shape": "x".join(map(str, new.shape)), "dtype": str(new.dtype)}
            row["same bytes"] = "yes" if old.dtype == new.dtype and old.tobytes() == new.tobytes() else "NO"
            row["largest difference"] = float(np.nanmax(np.abs(new.astype(float) - old.astype(float)), initial=0))
            rows.append(row)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    if args.out is not None:
        args.out.write_text(f"# Results before and after\n\n{__doc__}\n\n{table.to_markdown(index=False)}\n")


if __name__ == "__main__":
    main()
