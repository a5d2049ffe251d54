"""Cluster an embedding into spatial domains."""

from __future__ import annotations

import logging
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stimg import _keys
from stimg._cluster._features import (
    embedded_together,
    joined_coordinates,
    joined_embeddings,
    principal_components,
)
from stimg._cluster._methods import METHODS
from stimg._cluster._nested import find_levels
from stimg._cluster._numbering import read_reference
from stimg._cluster._stability import choose_number
from stimg._input._checks import check_choice, check_positive_int, checked
from stimg._input._records import said, section_codes, write_record
from stimg._input._tables import distinct_tables, prepare
from stimg._input._threads import one_thread

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from stimg._cluster._nested import Level

logger = logging.getLogger("stimg")

REFINE_NEIGHBOURS = 18


@checked
def domains(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    n_domains: int | Literal["auto"] | None = None,
    *,
    levels: Sequence[int] | None = None,
    method: Literal["mixture", "kmeans", "leiden"] = "mixture",
    use_rep: str | Sequence[str] | None = None,
    covariance: Literal["tied", "full"] | None = None,
    n_components: int | None = 15,
    candidates: Sequence[int] = tuple(range(2, 13)),
    spatial_key: str | None = None,
    library_key: str | None = None,
    refine: bool | int = False,
    like: str | None = None,
    key_added: str = _keys.DOMAIN,
    table_key: str | None = None,
    rng: int | np.random.Generator | None = 0,
    copy: bool = False,
) -> AnnData | SpatialData | list[AnnData | SpatialData] | None:
    """Find spatial domains: exactly `n_domains` clusters of the embedding, or nested ones at several levels.

    Parameters
    ----------
    adata
        A slide after :func:`stimg.tl.embed`, or a list of slides that are clustered jointly.
    n_domains
        Number of domains, or `"auto"`: the one of `candidates` whose domains are found again best in random parts of
        the data. Each of 12 runs (10 of Leiden) clusters four fifths of the observations of every section (of at most
        2,500 in all) from a few random starts. A number's score is the mean adjusted Rand index of its runs with each
        other and with the runs of one domain more, which agree where that only splits a domain. Of scores within 0.03
        of the best, the smallest number is taken. The log names it, the runner-up and their scores; see
        :func:`stimg.pl.domain_stability`.
    levels
        Instead of `n_domains`, at least two increasing numbers of domains, such as `(4, 7, 10)`: each finer domain lies
        inside one coarser domain. The coarsest domains are those of `n_domains=levels[0]`; then, one after the other,
        the domain is split whose split in two, by the same method, gains most likelihood (of Gaussians with one
        covariance). See :func:`stimg.pl.domain_tree`.
    method
        `"mixture"`: Gaussian mixture, best of several starts by likelihood. `"kmeans"`. `"leiden"`: Leiden on two
        layers, the embedding's neighbour graph and the spatial one (leidenalg's multiplex partition; Traag et al.
        2019), with the resolution searched for `n_domains`. With more than 200,000 observations, the first two are
        fitted to that many, spaced evenly along the first component, and then assign the rest; Leiden takes long.
    use_rep
        Embedding in `.obsm`. By default that which was measured best and is comparable: `"X_stimg_slide"` for one
        slide, `"X_stimg_joint"` for sections that were embedded in one call, and otherwise `"X_stimg"`. Several
        embeddings, such as `["X_stimg_image", "X_stimg_gene"]`, are joined after each is brought to a total variance of
        one.
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
        section (`True`: 18). Off by default. Labels of finer `levels` are refined within each coarser domain.
    like
        Column of `.obs` with categories, in every slide: domains are numbered in the order of the categories that they
        match, and take their colours as :func:`stimg.pl.domains` draws them, so that two figures can be compared.
        Domains and categories are paired so that they share as many observations as possible; domains without a
        category come last, by size, in other colours. With `levels`, this holds for the coarsest. Observations without
        a label are ignored, and labels never influence which observations a domain has.
    key_added
        Key of the labels in `.obs`; with `levels`, what their keys begin with.
    table_key, copy
        Table of a `SpatialData`; whether to return changed copies and leave `adata` as it is.
    rng
        Seed or generator.

    Returns
    -------
    `None` (or the copy, or the list of copies), with
    `.obs[key_added]` : categorical, `"1"` to `"n_domains"`, from the largest domain over all slides to the smallest;
    equally large ones in the order in which the rows meet them. With `like`, in the order of its categories.
    `.obs[key_added + "_confidence"]` : float32 in [0, 1]. Posterior probability (mixture), one minus the ratio of the
    distances to the nearest and second nearest centre (k-means), or the share of embedding neighbours in the same
    domain (Leiden). Computed before refinement.
    `.uns[key_added + "_colors"]` : one colour per domain.
    `.uns["stimg"]["domains"]` : parameters. With `like` also `matched`: the category of each domain, or `""`. With
    `n_domains="auto"` also `stability`: `candidates` int64 (n,), those that could be reached; `chosen` and `runner_up`
    (the best of the others; 0 if there is none); `runs` float64 (n, n_runs), the score of each run: the mean of its
    agreement with others of the same number, `same`, and with those of one domain more, `next`; `mean` and its standard
    `error`, float64 (n,); `equal` bool (n,), those of which the smallest was taken.

    With `levels`, the same for each number `n` of them under `f"{key_added}_{n}"`. Nothing is written under `key_added`
    itself, where earlier domains stay as they are. If `"2"` is split, its parts are `"2.1"`, `"2.2"`, ..., from the
    largest, in shades of its colour; a domain that is not split keeps name and colour. The confidence in a part is that
    in the domain times that in the split. `.uns["stimg"][key_added + "_levels"]` records all `levels`.

    Raises
    ------
    KeyError
        The embedding, the coordinates or the column `library_key` or `like` is missing.
    ValueError
        Not exactly one of `n_domains` and `levels` is given, `levels` do not increase, a number is above that of the
        observations, `like` is not a column of categories, has no labels, or has other categories or colours in another
        slide, the embedding is not finite, embeddings of several slides have different widths, `"X_stimg_slide"` is
        that of slides which were joined after they were embedded, a slide is given twice, sections without a
        `library_key` lie over one another where coordinates are used, or a bad argument.
    RuntimeError
        `n_domains` domains could not be reached, or no domain can be split further.

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
    most = _check_numbers(n_domains, levels, candidates)
    given = list(adata) if isinstance(adata, list | tuple) else [adata]
    tables = distinct_tables(given, table_key, copy=copy)
    coordinates = joined_coordinates(tables, spatial_key) if method == "leiden" or refine else None
    libraries = section_codes(tables, library_key, coordinates, spatial_key)
    keys = _embedding_keys(tables, libraries, use_rep)
    embedding = joined_embeddings(tables, keys)
    if most > len(embedding):
        name = "levels" if levels is not None else "candidates" if n_domains == "auto" else "n_domains"
        msg = (
            f"Expected `{name}` to be at most the number of observations ({len(embedding)}), found {most}. Ask for "
            "fewer domains."
        )
        raise ValueError(msg)
    reference = None if like is None else read_reference(tables, like)
    seed = int(np.random.default_rng(rng).integers(2**31))
    options: dict[str, Any] = {"method": method}
    if method == "mixture":
        options["covariance"] = shape
    elif method == "leiden":
        options |= {"coordinates": coordinates, "libraries": libraries}
    with one_thread():
        values = principal_components(embedding, n_components)
        numbers = (most,) if levels is None else tuple(map(int, levels))
        stability: dict[str, Any] = {}
        if n_domains == "auto":
            chosen, stability = choose_number(values, candidates, seed=seed, **({"libraries": libraries} | options))
            numbers = (chosen,)
        smooth = None
        if refine and coordinates is not None:
            smooth = (coordinates, libraries, REFINE_NEIGHBOURS if refine is True else int(refine))
        found = find_levels(values, numbers, seed=seed, reference=reference, smooth=smooth, **options)
    record: dict[str, Any] = {
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
    if like is not None:
        record |= {"like": like, "matched": found[0].matched}
    results, start = [], 0
    for slide in given:
        table, result = prepare(slide, table_key, copy)
        _write(table, found, slice(start, start + table.n_obs), key_added, levels is not None, record)
        start += table.n_obs
        results.append(result)
    added = ", ".join(f".obs[{key_added if levels is None else _keys.level_key(key_added, n)!r}]" for n in numbers)
    nested = ", ".join(map(str, numbers)) + (" nested" if levels is not None else "")
    logger.info("Added %s: %s domains by %s of .obsm[%r].", added, nested, method, record["use_rep"])
    if not copy:
        return None
    return results if isinstance(adata, list | tuple) else results[0]


def _write(
    table: AnnData, found: list[Level], rows: slice, key_added: str, nested: bool, record: dict[str, Any]
) -> None:
    """Write the domains of one slide, those of several levels each under its own key."""
    shared = {"levels": [len(level.domains) for level in found]} if nested else {}
    for level in found:
        number = len(level.domains)
        key = _keys.level_key(key_added, number) if nested else key_added
        names = [domain.name for domain in level.domains]
        table.obs[key] = pd.Categorical.from_codes(level.codes[rows], names)
        table.obs[key + _keys.CONFIDENCE_SUFFIX] = level.confidence[rows].astype(np.float32)
        table.uns[f"{key}_colors"] = [domain.colour for domain in level.domains]
        write_record(table, _keys.STEP_DOMAINS, key, deepcopy({"n_domains": number} | shared | record))
    if nested:
        write_record(table, _keys.STEP_DOMAINS, key_added + _keys.LEVELS_SUFFIX, deepcopy(shared | record))


def _embedding_keys(tables: list[AnnData], libraries: np.ndarray, use_rep: str | Sequence[str] | None) -> list[str]:
    """Return the keys of the embeddings that are clustered."""
    if use_rep is None:
        own, joint = (_keys.EMBEDDING + suffix for suffix in (_keys.SLIDE_SUFFIX, _keys.JOINT_SUFFIX))
        if len(np.unique(libraries)) > 1 and embedded_together(tables, _keys.EMBEDDING):
            return [joint]
        return [own if len(tables) == 1 and own in tables[0].obsm else _keys.EMBEDDING]
    keys = [use_rep] if isinstance(use_rep, str) or not np.iterable(use_rep) else list(use_rep)
    if not keys or not all(isinstance(key, str) for key in keys):
        msg = f"Expected keys of `.obsm` in `use_rep`, found {use_rep!r}."
        raise ValueError(msg)
    return keys


def _check_numbers(n_domains: Any, levels: Any, candidates: Any) -> int:
    """Refuse what are not numbers of domains; return the largest."""
    if (n_domains is None) == (levels is None):
        msg = (
            "Expected either `n_domains` (an integer or 'auto') or `levels` (several numbers of nested domains), "
            f"found n_domains={n_domains!r} and levels={levels!r}."
        )
        raise ValueError(msg)
    if levels is not None:
        if not _is_list(levels) or len(levels) < 2:
            msg = f"Expected `levels` to be at least two numbers of domains, such as (4, 7, 10), found {levels!r}."
            raise ValueError(msg)
        for number in levels:
            check_positive_int("levels", number)
        if any(finer <= coarser for coarser, finer in pairwise(levels)):
            msg = f"Expected `levels` from the fewest domains to the most, found {levels!r}."
            raise ValueError(msg)
        return int(levels[-1])
    if n_domains != "auto":
        check_positive_int("n_domains", n_domains)
        return int(n_domains)
    if not _is_list(candidates) or not len(candidates):
        msg = f"Expected `candidates` to be numbers of domains to choose between, found {candidates!r}."
        raise ValueError(msg)
    for number in candidates:  # a single domain would always agree with itself
        check_positive_int("candidates", number, minimum=2)
    return int(max(candidates))


def _is_list(values: object) -> bool:
    return np.iterable(values) and hasattr(values, "__len__") and not isinstance(values, str | dict | set)
