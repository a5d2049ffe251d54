"""Where the files of STimage-1K4M are: a copy on disk, or the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from stimg.datasets._fetch import fetch

HUB = "https://huggingface.co"
REPOSITORY = "datasets/jiawennnn/STimage-1K4M"
CACHE = "stimage_1k4m"
META = ("meta/meta_all_gene02122025.csv", "meta/meta_all_gene.csv")
# The older table has this slide under the wrong species' name.
MISNAMED = {"Human_Brain+Kidney_10X_02212023_Visium": "Mouse_Brain+Kidney_10X_02212023_Visium"}
LICENCE = "that of the study; the collection itself MIT"
ADVICE = "or give the folder of a copy of the data set as `root`"


class LocalFiles:
    """Files of a copy on disk."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        if not any((self.root / meta).is_file() for meta in META):
            msg = (
                f"No {META[0]!r} under `root`={str(root)!r}. Give the folder of a copy of STimage-1K4M with `meta`, "
                "`annotation`, `ST`, `Visium` and `VisiumHD` in it."
            )
            raise FileNotFoundError(msg)
        self._annotations: dict[str, str] | None = None

    def meta(self) -> Path:
        """Path of the table of slides."""
        return next(self.root / meta for meta in META if (self.root / meta).is_file())

    def annotations(self) -> dict[str, str]:
        """File of labels of each annotated slide."""
        if self._annotations is None:
            paths = (path.relative_to(self.root).as_posix() for path in (self.root / "annotation").glob("*_anno*"))
            self._annotations = {_annotated_slide(path): path for path in sorted(paths)}
        return self._annotations

    def path(self, file: str, slide: str) -> Path:
        """Path on disk of one of a slide's files."""
        path = self.root / file
        if not path.is_file():
            msg = f"File {file!r} of slide {slide!r} not found under `root`={str(self.root)!r}. Copy it there."
            raise FileNotFoundError(msg)
        return path


class HubFiles:
    """Files of one commit of the hub, kept in the cache."""

    def __init__(self, revision: str | None) -> None:
        self.revision = revision or _pinned_revision()

    def meta(self) -> Path:
        """Path of the table of slides."""
        return self.path(META[0], "meta")

    def annotations(self) -> dict[str, str]:
        """File of labels of each annotated slide."""
        url = f"{HUB}/api/{REPOSITORY}/tree/{self.revision}/annotation"
        listing = json.loads(fetch(url, self._folder(), "annotation", "annotations.json", ADVICE).read_text())
        return {_annotated_slide(entry["path"]): entry["path"] for entry in listing if "_anno" in entry["path"]}

    def path(self, file: str, slide: str) -> Path:
        """Path on disk of one of a slide's files."""
        return fetch(f"{HUB}/{REPOSITORY}/resolve/{self.revision}/{file}", self._folder(), slide, file, ADVICE)

    def _folder(self) -> str:
        return f"{CACHE}/{self.revision}"


def _pinned_revision() -> str:
    """Commit of the hub that was the newest when this cache was first used."""
    listing = fetch(f"{HUB}/api/{REPOSITORY}", CACHE, "catalogue", "revision.json", ADVICE)
    return str(json.loads(listing.read_text())["sha"])


def read_catalogue(source: LocalFiles | HubFiles) -> pd.DataFrame:
    """Table of slides, as `Collection.catalogue` describes it."""
    path = source.meta()
    try:
        meta = pd.read_csv(path, sep=None, engine="python", dtype={"pmid": str})
    except (pd.errors.ParserError, UnicodeDecodeError) as e:
        msg = f"Expected the table of slides in {str(path)!r}, found an unreadable file. Get it again."
        raise OSError(msg) from e
    wanted = ["slide", "tech", "species", "tissue", "pmid", "title", "involve_cancer", "spot_num", "gene_num"]
    if missing := [name for name in wanted if name not in meta]:
        msg = f"Columns {missing} not found in {str(path)!r}: {list(meta)}. It is not the table of slides."
        raise OSError(msg)
    meta = meta[wanted].set_index("slide").rename(index=MISNAMED)
    meta = meta.rename(
        columns={
            "tech": "technology",
            "pmid": "study",
            "involve_cancer": "cancer",
            "spot_num": "spots",
            "gene_num": "genes",
        }
    )
    meta["study"] = meta["study"].fillna("")
    meta["annotated"] = meta.index.isin(list(source.annotations()))
    meta["licence"] = LICENCE
    return meta


def _annotated_slide(path: str) -> str:
    return Path(path).name.split("_anno")[0]
