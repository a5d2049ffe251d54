"""Cluster an embedding into spatial domains."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._methods import METHODS, choose_number, cluster, refine_labels
from stimg._cluster._mixture import MOST_FINISHED
from stimg._input._checks import (
    check_choice,
    check_coordinates,
    check_embedding,
    check_library_key,
    check_positive_int,
    checked,
)
from stimg._input._tables import distinct_tables, prepare, write_uns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

# Okabe and Ito's colours and Paul Tol's muted ones: told apart with any colour vision.
PALETTE = (
    "#0072B2 #E69F00 #009E73 #CC79A7 #56B4E9 #D55E00 #F0E442 #882255 #117733 #999933 #332288 #44AA99 #AA4499 #661100"
).split()
REFINE_NEIGHBOURS = 18


@checked
def domains(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    n_domains: int | Literal["auto"],
    *,
    method: Literal["mixture", "kmeans", "leiden"] = "mixture",
    use_rep: str | Sequence[str] | None = None,
    covariance: Literal["tied", "full"] = "tied",
    n_components: int | None = 15,
    candidates: Sequence[int] = tuple(range(3, 13)),
    spatial_key: str = _keys.SPATIAL,
    library_key: str | None = None,
    refine: bool | int = False,
    key_added: str = _keys.DOMAIN,
    table_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | SpatialData | list[AnnData | SpatialData] | None:
    """Find spatial domains: exactly `n_domains` clusters of the embedding.

    Parameters
    ----------
    adata
        A slide with :func:`stimg.tl.embed` done, or a list of slides that are clustered jointly.
    n_domains
        Number of domains, or `"auto"`: of `candidates` the one whose domains agree best between five seeds (mean
        pairwise adjusted Rand index to three digits; ties go to the larger number).
    method
        `"mixture"`: Gaussian mixture, best of several starts by likelihood. `"kmeans"`. `"leiden"`: Leiden on two
        layers, the embedding's neighbour graph and the spatial one (leidenalg's multiplex partition; Traag et al.
        2019), with the resolution searched for `n_domains`. Of more than 200,000 observations the first two are fitted
        to that many, evenly along the first component, and assign the rest; Leiden then takes long.
    use_rep
        Embedding in `.obsm`. By default `"X_stimg_slide"` where there is one, which was measured best over tissues, and
        `"X_stimg"` otherwise and for several slides, which only that can compare. Of several, such as
        `["X_stimg_image", "X_stimg_gene"]`, each is brought to a total variance of one and they are joined.
    covariance
        Of the mixture: `"tied"`, one for all domains, or `"full"`.
    n_components
        Principal components of the embedding that are clustered; 0 or `None` for the embedding itself.
    candidates
        Numbers of at least 2 tried by `n_domains="auto"`. One that cannot be reached is left out with a warning.
    spatial_key
        Coordinates, used by `"leiden"` and `refine`.
    library_key
        Column of `.obs` that tells sections of one object apart: no spatial neighbour is in another section.
    refine
        Replace each label by the commonest among this many nearest observations of its section and itself (`True`:
        18). Off by default.
    key_added
        Key of the labels in `.obs`.
    table_key
        Table of a `SpatialData`.
    rng
        Seed or generator.
    copy
        Return changed copies and leave `adata` as it is.

    Returns
    -------
    `None` (or the copy, or the list of copies), with
    `.obs[key_added]` : categorical, `"1"` to `"n_domains"`, the largest domain over all slides first; of equally large
    ones the one met first in the order of the rows.
    `.obs[key_added + "_confidence"]` : float32 in [0, 1]. Posterior probability (mixture), one minus the ratio of the
    distances to the nearest and second nearest centre (k-means), or the share of embedding neighbours in the same
    domain (Leiden). Of the labels before refinement.
    `.uns[key_added + "_colors"]` : one colour a domain.
    `.uns["stimg"]["domains"]` : parameters; with `n_domains="auto"` also `agreement`, the score of each candidate.

    Raises
    ------
    KeyError
        The embedding, the coordinates or the column `library_key` is missing.
    ValueError
        `n_domains` is above the number of observations, the embedding is not finite, embeddings of several slides have
        different widths, a slide is given twice, or a bad argument.
    RuntimeError
        `n_domains` domains could not be reached.
    """
    from stimg import __version__

    check_choice("method", method, METHODS)
    check_choice("covariance", covariance, ("tied", "full"))
    n_components = 0 if n_components is None else n_components
    check_positive_int("n_components", n_components, minimum=0)
    if not isinstance(refine, bool | np.bool_):
        check_positive_int("refine", refine, minimum=0)
    if n_domains == "auto":
        _check_candidates(candidates)
    else:
        check_positive_int("n_domains", n_domains)
    given = list(adata) if isinstance(adata, list | tuple) else [adata]
    tables = distinct_tables(given, table_key, copy=copy)
    spatial = method == "leiden" or bool(refine)
    if use_rep is None:
        own = _keys.EMBEDDING + _keys.SLIDE_SUFFIX
        use_rep = own if len(tables) == 1 and own in tables[0].obsm else _keys.EMBEDDING
    keys = [use_rep] if isinstance(use_rep, str) or not np.iterable(use_rep) else list(use_rep)
    if not keys or not all(isinstance(key, str) for key in keys):
        msg = f"Expected keys of `.obsm` in `use_rep`, found {use_rep!r}."
        raise ValueError(msg)
    parts = [np.concatenate([check_embedding(table, key) for key in keys], axis=1) for table in tables]
    if len(widths := {part.shape[1] for part in parts}) > 1:
        msg = (
            f"Expected `.obsm[{use_rep!r}]` of one width in all slides, found {sorted(widths)}. "
            "Embed all slides with the same model: `stimg.tl.embed(adata, model)`."
        )
        raise ValueError(msg)
    embedding = np.concatenate(parts)
    if len(keys) > 1:
        embedding = _balanced(embedding, [check_embedding(tables[0], key).shape[1] for key in keys])
    for table in tables:
        check_library_key(table, library_key)
    coordinates = np.concatenate([check_coordinates(t, spatial_key) for t in tables]) if spatial else None
    libraries = _libraries(tables, library_key)
    largest = max(candidates) if n_domains == "auto" else n_domains
    if largest > len(embedding):
        name = "candidates" if n_domains == "auto" else "n_domains"
        msg = f"Expected `{name}` of at most the {len(embedding)} observations, found {largest}. Ask for fewer domains."
        raise ValueError(msg)
    values = _components(embedding, n_components)
    seed = int(np.random.default_rng(rng).integers(2**31))
    options: dict[str, Any] = {"method": method, "covariance": covariance}
    if method == "leiden":
        options |= {"coordinates": coordinates, "libraries": libraries}
    agreement: dict[str, float] = {}
    if n_domains == "auto":
        n_domains, agreement = choose_number(values, candidates, seed=seed, **options)
    labels, confidence = cluster(values, n_domains, seed=seed, **options)
    if refine and coordinates is not None:
        count = REFINE_NEIGHBOURS if refine is True else int(refine)
        labels = refine_labels(labels, coordinates, libraries, count)
        if len(np.unique(labels)) < n_domains:
            msg = f"Refinement left {len(np.unique(labels))} of {n_domains} domains. Pass a smaller `refine`, or False."
            raise RuntimeError(msg)
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    order = np.lexsort((first, -sizes))
    names = [str(i + 1) for i in range(n_domains)]
    codes = np.argsort(order, kind="stable")[labels]
    record: dict[str, Any] = {
        "n_domains": n_domains,
        "method": method,
        "covariance": covariance,
        "use_rep": use_rep if isinstance(use_rep, str) else keys,
        "n_components": n_components,
        "n_slides": len(tables),
        "spatial_key": spatial_key if spatial else "",
        "library_key": library_key or "",
        "refine": int(refine),
        "seed": seed,
        "key_added": key_added,
        "version": __version__,
    }
    if agreement:
        record["agreement"] = agreement
    results = []
    start = 0
    for slide in given:
        table, result = prepare(slide, table_key, copy)
        part = slice(start, start + table.n_obs)
        start += table.n_obs
        table.obs[key_added] = pd.Categorical.from_codes(codes[part], names)
        table.obs[key_added + _keys.CONFIDENCE_SUFFIX] = confidence[part].astype(np.float32)
        table.uns[f"{key_added}_colors"] = domain_colours(n_domains)
        write_uns(table, _keys.STEP_DOMAINS, deepcopy(record))
        results.append(result)
    logger.info("Added .obs[%r]: %d domains by %s of .obsm[%r].", key_added, n_domains, method, use_rep)
    if not copy:
        return None
    return results if isinstance(adata, list | tuple) else results[0]


def _check_candidates(candidates: Sequence[int]) -> None:
    """Refuse what are no numbers of domains to choose between; a single domain would always agree with itself."""
    if isinstance(candidates, str) or not np.iterable(candidates) or not len(candidates):
        msg = f"Expected `candidates` to be numbers of domains to choose between, found {candidates!r}."
        raise ValueError(msg)
    for number in candidates:
        check_positive_int("candidates", number, minimum=2)


def _balanced(embedding: np.ndarray, widths: list[int]) -> np.ndarray:
    """Bring each block of columns to a mean of zero and a total variance of one."""
    blocks = np.split(embedding - embedding.mean(0), np.cumsum(widths)[:-1], axis=1)
    return np.concatenate([block / max(float(np.sqrt(block.var(0).sum())), 1e-12) for block in blocks], axis=1)


def _libraries(tables: list[AnnData], library_key: str | None) -> np.ndarray:
    """Return one integer a section; sections of different tables never meet."""
    names = [
        pd.Series(str(i), index=t.obs_names) if library_key is None else str(i) + "/" + t.obs[library_key].astype(str)
        for i, t in enumerate(tables)
    ]
    return pd.factorize(pd.concat(names))[0]


def _components(embedding: np.ndarray, n_components: int) -> np.ndarray:
    """Principal components of the embedding, where it has more dimensions than asked for."""
    if n_components == 0 or embedding.shape[1] <= n_components or len(embedding) <= n_components:
        return embedding - embedding.mean(0)
    from sklearn.decomposition import PCA

    solver = "full" if len(embedding) <= MOST_FINISHED else "covariance_eigh"  # which needs no second copy
    return PCA(n_components, svd_solver=solver).fit_transform(embedding)


def domain_colours(n_domains: int) -> list[str]:
    """One colour a domain; beyond the palette, scanpy's large ones."""
    if n_domains <= len(PALETTE):
        return list(PALETTE[:n_domains])
    from scanpy.plotting import palettes

    larger = palettes.default_28 if n_domains <= len(palettes.default_28) else palettes.default_102
    return [larger[i % len(larger)] for i in range(n_domains)]
