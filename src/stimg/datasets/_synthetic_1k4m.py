"""A miniature copy of STimage-1K4M on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._input._checks import check_positive_int, checked
from stimg.datasets._stimage_source import META
from stimg.datasets._synthetic_histology import synthetic_histology

TISSUES = ("breast", "brain", "skin")
HUNDREDS = 100


@checked
def synthetic_1k4m(root: str | Path, *, n_slides: int = 6, n_rows: int = 6, n_genes: int = 40, seed: int = 0) -> Path:
    """Write a miniature of STimage-1K4M with exactly its folders and files, for tests and to try code offline.

    The slides come from :func:`stimg.datasets.synthetic_histology` and are called ST and Visium in turn. As in the
    collection, the radius of Visium's spots is 35 % of their pitch, as Space Ranger has it, and files called `.png` may
    hold a JPEG or TIFF. Every third slide is annotated with each spot's most common
    cell type.

    Parameters
    ----------
    root
        A new or empty folder.
    n_slides
        Number of slides.
    n_rows
        Rows of spots per slide, and columns.
    n_genes
        Number of genes.
    seed
        The same seed gives the same slides.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    FileExistsError
        The folder is not empty.
    ValueError
        A number is too small.
    """
    from PIL import Image

    check_positive_int("n_slides", n_slides)
    check_positive_int("n_rows", n_rows, minimum=2)
    check_positive_int("n_genes", n_genes, minimum=3)
    root = Path(root).expanduser()
    if root.exists() and any(root.iterdir()):
        msg = f"Expected a new or empty folder in `root`, found {str(root)!r}, which is not empty."
        raise FileExistsError(msg)
    for technology in ("ST", "Visium", "VisiumHD"):
        for part in ("coord", "gene_exp", "image"):
            (root / technology / part).mkdir(parents=True, exist_ok=True)
    (root / "annotation").mkdir()
    (root / "meta").mkdir()
    meta = []
    for i in range(n_slides):
        technology = ("ST", "Visium")[i % 2]
        name = f"Human_Synthetic_{i:04d}_{technology}"
        slide = synthetic_histology(n_rows=n_rows, n_cols=n_rows, n_genes=n_genes, seed=seed * HUNDREDS + i)
        entry = slide.uns[_keys.SPATIAL]["histology"]
        places = enumerate(zip(slide.obs[_keys.ARRAY_ROW], slide.obs[_keys.ARRAY_COL], strict=True))
        spots = [f"{name}_{c}x{r}" if technology == "ST" else f"{name}_{k:016d}-1" for k, (r, c) in places]
        radius = entry["scalefactors"]["spot_diameter_fullres"] / 2 * (1.4 if technology == "Visium" else 1)
        x, y = slide.obsm[_keys.SPATIAL].T
        coordinates = pd.DataFrame({"yaxis": y, "xaxis": x, "r": radius}, index=spots)
        coordinates.to_csv(root / technology / "coord" / f"{name}_coord.csv")
        counts = pd.DataFrame(slide.X.toarray(), index=spots, columns=slide.var_names)
        counts.to_csv(root / technology / "gene_exp" / f"{name}_count.csv")
        image, kind = Image.fromarray(entry["images"]["hires"]), ("PNG", "JPEG", "TIFF")[i % 3]
        image.save(root / technology / "image" / f"{name}.png", format=kind)
        if i % 3 == 0:
            share = np.argmax(slide.X[:, : min(3, n_genes)].toarray(), axis=1)
            labels = pd.DataFrame({"V2": [f"type {k}" for k in share]}, index=spots)
            labels.iloc[0] = "undetermined"
            labels.to_csv(root / "annotation" / f"{name}_anno.csv", sep="\t")
        meta.append(
            {
                "slide": name,
                "species": "human",
                "tissue": TISSUES[i % len(TISSUES)],
                "pmid": str(10_000_000 + i // 2),
                "title": f"Synthetic study {i // 2}",
                "abstract": "Not a real study.",
                "keywords": "synthetic",
                "involve_cancer": i % 2 == 0,
                "tech": technology,
                "spot_num": slide.n_obs,
                "gene_num": slide.n_vars,
            }
        )
    pd.DataFrame(meta).to_csv(root / META[0], index=False)
    (root / "meta" / "bib.txt").write_text("@article{synthetic, title={Not a real study}}\n")
    return root
