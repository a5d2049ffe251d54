"""Moran's I of genes among nearest neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stimg._slide._geometry import nearest_others

if TYPE_CHECKING:
    from collections.abc import Iterable

NEIGHBOURS = 6


def neighbour_graph(coordinates: np.ndarray, sections: np.ndarray) -> sparse.csr_matrix:
    """Return the graph float64 (n_obs, n_obs) of each observation's six nearest in its section; `sections` is (n_obs,).

    A section with too few observations is a `ValueError`.
    """
    n_obs = len(coordinates)
    columns = np.empty((n_obs, NEIGHBOURS), dtype=np.int64)
    for section in np.unique(sections):
        rows = np.flatnonzero(sections == section)
        if len(rows) <= NEIGHBOURS:
            msg = (
                f"Expected more than {NEIGHBOURS} observations in every section for `method='moran'`, found "
                f"{len(rows)}. Use `method='variance'`."
            )
            raise ValueError(msg)
        columns[rows] = rows[nearest_others(coordinates[rows], NEIGHBOURS)]
    indptr = np.arange(0, n_obs * NEIGHBOURS + 1, NEIGHBOURS)
    return sparse.csr_matrix((np.ones(columns.size), columns.ravel(), indptr), shape=(n_obs, n_obs))


def morans_i(blocks: Iterable[sparse.csr_array], graph: sparse.csr_matrix, columns: np.ndarray) -> np.ndarray:
    """Return Moran's I, float64 (len(columns),), of expression in blocks of rows; 0 if it is negative or undefined."""
    from scanpy.metrics import morans_i as statistic

    values = sparse.csr_matrix(sparse.vstack([block[:, columns] for block in blocks]).T)
    # All rows of the graph have as many neighbours, whose weights shall sum to one.
    return np.nan_to_num(np.maximum(statistic(graph / NEIGHBOURS, values), 0))
