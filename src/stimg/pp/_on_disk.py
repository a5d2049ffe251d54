"""Slides of a collection, one after another, with their expression left on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from stimg._slide import Slide
    from stimg.datasets import Collection

# Visium spots of the collections have no array positions; their grid is found from the coordinates.
PLATFORMS = {"ST": "st", "VisiumHD": "visium_hd"}


def prepared(collection: Collection) -> Iterator[AnnData]:
    """Read each slide without its image and run `to_lattice` and `select_genes` with their defaults on it."""
    from stimg.pp._select_genes import select_genes
    from stimg.pp._to_lattice import to_lattice

    for name, technology in collection.catalogue["technology"].items():
        table = collection.read(str(name), image=False)
        to_lattice(table, PLATFORMS.get(technology, "auto"))
        select_genes(table)
        yield table


def temporary_folder() -> Path:
    """Make a folder of its own in the cache."""
    folder = settings.cachedir / "patches"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def remove_with(owner: Any, folder: Path) -> None:
    """Remove a folder when `owner` is no longer used, at the latest when Python ends."""
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)


def leave_on_disk(slide: Slide, folder: Path) -> Slide:
    """Return the slide with its expression in memory-mapped files, whose pages the system reads and drops as needed."""
    parts = []
    for name in ("data", "indices", "indptr"):
        path = folder / f"{slide.name}-{name}.npy"
        np.save(path, getattr(slide.expression, name))
        parts.append(np.load(path, mmap_mode="r"))
    return replace(slide, expression=sparse.csr_array(tuple(parts), shape=slide.expression.shape, copy=False))
