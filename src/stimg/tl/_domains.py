"""Cluster an embedding into spatial domains."""

from __future__ import annotations

import logging
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._colours import domain_colours
from stimg._cluster._features import joined_coordinates, joined_embeddings, principal_components
from stimg._cluster._methods import METHODS, by_size, cluster, refine_labels
from stimg._cluster._stability import choose_number
from stimg._input._checks import check_choice, check_positive_int, checked
from stimg._input._records import said, section_codes, write_record
from stimg._input._tables import distinct_tables, prepare
from stimg._input._threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stimg")

REFINE_NEIGHBOURS = 18


@checked
def domains(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    n_domains: int | Literal["auto"],
    *,
    method: Literal["mixture", "kmeans", "leiden"] = "mixture",
    use_rep: str | Sequence[str] | None = None,
    covariance: Literal["tied", "full"] | None = None,
    n_components: int | None = 15,
    candidates: Sequence[int] = tuple(range(3, 13)),
    spatial_key: str | None = None,
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
        A slide after :func:`stimg.tl.embed`, or a list of slides that are clustered jointly.
    n_domains
        Number of domains, or `"auto"`: the one of `candidates` whose domains are found again best in random parts of
        the data. Each of 25 runs (10 of Leiden) clusters four fifths of the observations of every section (of at most
        2,500 in all) from a single random start; their labels are compared by the adjusted Rand index. Of numbers whose
        scores differ by no more than a standard error, or 0.03, the smallest is taken.
    method
        `"mixture"`: Gaussian mixture, best of several starts by likelihood. `"kmeans"`. `"leiden"`: Leiden on two
        layers, the embedding's neighbour graph and the spatial one (leidenalg's multiplex partition; Traag et al.
        2019), with the resolution searched for `n_domains`. With more than 200,000 observations, the first two are
        fitted to that many, spaced evenly along the first component, and then assign the rest; Leiden takes long.
    use_rep
        Embedding in `.obsm`. By default `"X_stimg_slide"` for one slide that has it, which was measured best over
        tissues, and otherwise `"X_stimg"`, the only one that is comparable between slides. Several embeddings, such as
        `["X_stimg_image", "X_stimg_gene"]`, are joined after each is brought to a total variance of one.
    covariance
        Covariance of the mixture: `"tied"`, one for all domains (the default), or `"full"`.
    n_components
        Principal components of the embedding that are clustered; 0 or `None` for the embedding itself.
    candidates
        Numbers of at least 2 tried by `n_domains="auto"`. One that cannot be reached is left out with a warning.
    spatial_key, library_key
        Coordinates in `.obsm`, used by `"leiden"` and `refine`, and the column of `.obs` that tells sections of one
        object apart: spatial neighbours are always of one section. By default those given to
        :func:`stimg.pp.to_lattice`.
    refine
        Replace each label by the most common one among the observation and this many nearest observations of its
        section (`True`: 18). Off by default.
    key_added
        Key of the labels in `.obs`.
    table_key, copy
        Table of a `SpatialData`; whether to return changed copies and leave `adata` as it is.
    rng
        Seed or generator.

    Returns
    -------
    `None` (or the copy, or the list of copies), with
    `.obs[key_added]` : categorical, `"1"` to `"n_domains"`, from the largest domain over all slides to the smallest;
    equally large ones in the order in which the rows meet them.
    `.obs[key_added + "_confidence"]` : float32 in [0, 1]. Posterior probability (mixture), one minus the ratio of the
    distances to the nearest and second nearest centre (k-means), or the share of embedding neighbours in the same
    domain (Leiden). Computed before refinement.
    `.uns[key_added + "_colors"]` : one colour per domain.
    `.uns["stimg"]["domains"]` : parameters; with `n_domains="auto"` also `stability`: `candidates` int64 (n,), those
    that could be reached; `runs` float64 (n, n_runs), the mean agreement of each run with the others; `mean` and its
    standard `error`, float64 (n,); `equal` bool (n,), those of which the smallest was taken.

    Raises
    ------
    KeyError
        The embedding, the coordinates or the column `library_key` is missing.
    ValueError
        `n_domains` is above the number of observations, the embedding is not finite, embeddings of several slides have
        different widths, `"X_stimg_slide"` is that of slides which were joined after they were embedded, a slide is
        given twice, sections without a `library_key` lie over one another where coordinates are used, or a bad
        argument.
    RuntimeError
        `n_domains` domains could not be reached.

    Warns
    -----
    UserWarning
        With `n_domains="auto"`, if candidates cannot be reached, or if no number stands out (all scores below 0.5).

    References
    ----------
    Stability: Ben-Hur et al. 2002, Pac Symp Biocomput 7:6; von Luxburg 2010, Found Trends Mach Learn 2:235. CellCharter
    (Varrone et al. 2024, Nat Genet 56:74) chooses by stability, too, comparing each number with the next.

    Examples
    --------
    >>> slide = stimg.datasets.synthetic(n_obs=300)
    >>> sc.pp.pca(slide)
    >>> stimg.tl.domains(slide, 4, use_rep="X_pca")  # after `stimg.tl.embed`, leave out `use_rep`
    >>> list(slide.obs["stimg_domain"].cat.categories)
    ['1', '2', '3', '4']
    """
    check_choice("method", method, METHODS)
    if covariance is not None and method != "mixture":
        msg = f"Expected no `covariance` with `method={method!r}`, found {covariance!r}. Only a mixture has one."
        raise ValueError(msg)
    shape = covariance or "tied"
    check_choice("covariance", shape, ("tied", "full"))
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
    keys = _embedding_keys(tables, use_rep)
    embedding = joined_embeddings(tables, keys)
    coordinates = joined_coordinates(tables, spatial_key) if method == "leiden" or refine else None
    libraries = section_codes(tables, library_key, coordinates, spatial_key)
    largest = max(candidates) if n_domains == "auto" else n_domains
    if largest > len(embedding):
        name = "candidates" if n_domains == "auto" else "n_domains"
        msg = (
            f"Expected `{name}` to be at most the number of observations ({len(embedding)}), found {largest}. Ask for "
            "fewer domains."
        )
        raise ValueError(msg)
    seed = int(np.random.default_rng(rng).integers(2**31))
    options: dict[str, Any] = {"method": method}
    if method == "mixture":
        options["covariance"] = shape
    elif method == "leiden":
        options |= {"coordinates": coordinates, "libraries": libraries}
    with one_thread():
        values = principal_components(embedding, n_components)
        stability: dict[str, np.ndarray] = {}
        if n_domains == "auto":
            n_domains, stability = choose_number(values, candidates, seed=seed, **({"libraries": libraries} | options))
        labels, confidence = cluster(values, n_domains, seed=seed, **options)
        if refine and coordinates is not None:
            count = REFINE_NEIGHBOURS if refine is True else int(refine)
            labels = refine_labels(labels, coordinates, libraries, count)
    codes = by_size(labels, n_domains)
    record: dict[str, Any] = {
        "n_domains": n_domains,
        "method": method,
        "covariance": shape if method == "mixture" else "",
        "use_rep": keys[0] if len(keys) == 1 else keys,
        "n_components": n_components,
        "n_slides": len(tables),
        "spatial_key": "" if coordinates is None else said(tables[0], "spatial_key", spatial_key, _keys.SPATIAL),
        "library_key": said(tables[0], "library_key", library_key, ""),
        "refine": int(refine),
        "seed": seed,
    } | ({"stability": stability} if stability else {})
    results, start = [], 0
    for slide in given:
        table, result = prepare(slide, table_key, copy)
        part = slice(start, start + table.n_obs)
        start += table.n_obs
        table.obs[key_added] = pd.Categorical.from_codes(codes[part], [str(i + 1) for i in range(n_domains)])
        table.obs[key_added + _keys.CONFIDENCE_SUFFIX] = confidence[part].astype(np.float32)
        table.uns[f"{key_added}_colors"] = domain_colours(n_domains)
        write_record(table, _keys.STEP_DOMAINS, key_added, deepcopy(record))
        results.append(result)
    logger.info("Added .obs[%r]: %d domains by %s of .obsm[%r].", key_added, n_domains, method, record["use_rep"])
    if not copy:
        return None
    return results if isinstance(adata, list | tuple) else results[0]


def _embedding_keys(tables: list[AnnData], use_rep: str | Sequence[str] | None) -> list[str]:
    """Return the keys of the embeddings that are clustered."""
    if use_rep is None:
        own = _keys.EMBEDDING + _keys.SLIDE_SUFFIX
        return [own if len(tables) == 1 and own in tables[0].obsm else _keys.EMBEDDING]
    keys = [use_rep] if isinstance(use_rep, str) or not np.iterable(use_rep) else list(use_rep)
    if not keys or not all(isinstance(key, str) for key in keys):
        msg = f"Expected keys of `.obsm` in `use_rep`, found {use_rep!r}."
        raise ValueError(msg)
    return keys


def _check_candidates(candidates: Sequence[int]) -> None:
    """Refuse what are not numbers of domains to choose between; a single domain would always agree with itself."""
    if isinstance(candidates, str) or not np.iterable(candidates) or not len(candidates):
        msg = f"Expected `candidates` to be numbers of domains to choose between, found {candidates!r}."
        raise ValueError(msg)
    for number in candidates:
        check_positive_int("candidates", number, minimum=2)
