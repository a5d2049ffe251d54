"""Where the files of STimage-1K4M are: a copy on disk, or the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from stimg._downloads import inside
from stimg.datasets._fetch import fetch
from stimg.datasets._reading import reading

HUB = "https://huggingface.co"
REPOSITORY = "datasets/jiawennnn/STimage-1K4M"
CACHE = "stimage_1k4m"
META = ("meta/meta_all_gene02122025.csv", "meta/meta_all_gene.csv")
# Columns of the table of slides, and their names in `Collection.catalogue`.
COLUMNS = {"slide": "slide", "tech": "technology", "species": "species", "tissue": "tissue", "pmid": "study"}
COLUMNS |= {"title": "title", "involve_cancer": "cancer", "spot_num": "spots", "gene_num": "genes"}
# The older table names this slide after the wrong species.
MISNAMED = {"Human_Brain+Kidney_10X_02212023_Visium": "Mouse_Brain+Kidney_10X_02212023_Visium"}
LICENCE = "that of the study; the collection itself MIT"
ADVICE = "or give the folder of a copy of the data set as `root`"


class LocalFiles:
    """Files of a copy on disk: `meta` is the table of slides, `annotations` the file of labels by annotated slide."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        tables = [self.root / meta for meta in META if (self.root / meta).is_file()]
        if not tables:
            msg = (
                f"No {META[0]!r} in `root`={str(root)!r}. Give the folder of a copy of STimage-1K4M with `meta`, "
                "`annotation`, `ST`, `Visium` and `VisiumHD` in it."
            )
            raise FileNotFoundError(msg)
        self.meta = tables[0]
        files = sorted((self.root / "annotation").glob("*_anno*"))
        self.annotations = _by_slide([path.relative_to(self.root).as_posix() for path in files])

    def path(self, file: str, slide: str) -> Path:
        """Path on disk of one of a slide's files."""
        path = inside(self.root, file)
        if not path.is_file():
            msg = f"File {file!r} of slide {slide!r} not found in `root`={str(self.root)!r}. Copy it there."
            raise FileNotFoundError(msg)
        return path


class HubFiles:
    """Files of one commit of the hub, kept in the cache; attributes as those of `LocalFiles`."""

    def __init__(self, revision: str | None) -> None:
        if revision is None:  # the commit that was the newest when this cache was first used
            listing = fetch(f"{HUB}/api/{REPOSITORY}", CACHE, "catalogue", "revision.json", ADVICE, _read_revision)
            revision = _read_revision(listing)
        self.revision = revision
        self.folder = f"{CACHE}/{revision}"
        self.meta = self.path(META[0], "meta")
        url = f"{HUB}/api/{REPOSITORY}/tree/{revision}/annotation"
        listing = fetch(url, self.folder, "annotation", "annotations.json", ADVICE, _read_listing)
        self.annotations = _by_slide([file for file in _read_listing(listing) if "_anno" in file])

    def path(self, file: str, slide: str) -> Path:
        """Download one of a slide's files at its first use, and return its path on disk."""
        url = f"{HUB}/{REPOSITORY}/resolve/{self.revision}/{quote(file, safe='/+')}"
        return fetch(url, self.folder, slide, file, ADVICE)


def read_catalogue(source: LocalFiles | HubFiles) -> pd.DataFrame:
    """Return the table of slides, as `Collection.catalogue` describes it."""
    path = source.meta
    with reading(path, "the table of slides"):
        meta = pd.read_csv(path, sep=None, engine="python", dtype={"pmid": str})
    if missing := [name for name in COLUMNS if name not in meta]:
        msg = f"Columns {missing} not found in {str(path)!r}: {list(meta)}. It is not the table of slides."
        raise OSError(msg)
    meta = meta[list(COLUMNS)].rename(columns=COLUMNS).set_index("slide").rename(index=MISNAMED)
    meta["study"] = meta["study"].fillna("")
    meta["annotated"] = meta.index.isin(list(source.annotations))
    meta["licence"] = LICENCE
    return meta


def _read_revision(listing: Path) -> str:
    """Return the commit that the hub's answer names."""
    return str(json.loads(listing.read_text())["sha"])


def _read_listing(listing: Path) -> list[str]:
    """Return the paths of the files that the hub's answer lists."""
    entries: list[dict[str, Any]] = json.loads(listing.read_text())
    return [str(entry["path"]) for entry in entries]


def _by_slide(files: list[str]) -> dict[str, str]:
    return {Path(file).name.split("_anno")[0]: file for file in files}
