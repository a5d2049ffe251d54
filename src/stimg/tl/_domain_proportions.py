"""Count how much of each sample every domain takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stimg import _keys
from stimg._cluster._proportions import count_domains
from stimg._input._checks import checked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData


@checked
def domain_proportions(
    adata: AnnData | SpatialData | Sequence[AnnData | SpatialData],
    key: str = _keys.DOMAIN,
    *,
    library_key: str | None = None,
    condition_key: str | None = None,
    names: Sequence[str] | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Count how much of each sample every domain takes.

    :func:`stimg.tl.compare_proportions` tests whether conditions differ, and :func:`stimg.pl.domain_proportions` draws
    the shares.

    Parameters
    ----------
    adata
        A slide, or several in one object or in a list, after :func:`stimg.tl.domains` of all of them together.
    key
        Column of `.obs` with the domains. Observations without a label, or labelled `"unknown"`, do not count.
    library_key
        Column of `.obs` that tells samples apart; by default that given to :func:`stimg.pp.to_lattice`. Name the donor
        or animal if several sections come from the same one, since only samples that are independent can be compared.
        In a list, the same value in two slides is the same sample. Without a column, each slide is one sample.
    condition_key
        Column of `.obs` with a condition, such as treatment; every sample has one.
    names
        One name per slide of a list, each of which is then one sample. By default `slide0`, `slide1`, ...
    table_key
        Table of a `SpatialData`.

    Returns
    -------
    DataFrame
        One row per sample and domain, in the order of conditions, samples and domains: `sample`, `condition` (only with
        `condition_key`), `domain` (all categorical), `n_obs`, and `share` of the sample's labelled observations, 0 to
        1. A domain that a sample lacks has 0.

    Raises
    ------
    KeyError
        A column is missing.
    ValueError
        Domains of several slides that were found for each by itself; sections that lie over one another and no
        `library_key`; missing samples or conditions; a sample with two conditions, or without any label; a bad
        argument.

    Examples
    --------
    >>> slides = [stimg.datasets.synthetic(n_obs=300, n_genes=20, seed=seed) for seed in (0, 1)]
    >>> shares = stimg.tl.domain_proportions(slides, "domain", names=["mouse1", "mouse2"])
    >>> shares.groupby("sample", observed=True)["n_obs"].sum().to_dict()
    {'mouse1': 300, 'mouse2': 300}
    """
    return count_domains(
        adata, key, library_key=library_key, condition_key=condition_key, names=names, table_key=table_key
    )[0]
