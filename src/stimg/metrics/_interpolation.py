"""Hide regions of a slide, and fill them by interpolation: the baselines of reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from stimg._input._checks import check_choice, check_positive, check_positive_int, checked
from stimg._slide._geometry import spacing
from stimg.metrics._checks import as_points, as_sites

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

METHODS = ("nearest", "gaussian", "pca", "zero")
KERNEL_NEIGHBOURS = 64


@checked
def hide_regions(
    lattice: ArrayLike, size: int, *, n_regions: int = 5, rng: int | np.random.Generator | None = 0
) -> np.ndarray:
    """Choose square regions that lie wholly on tissue and do not overlap.

    Parameters
    ----------
    lattice
        Row and column of every observation, integer, shape (n_obs, 2): `.obsm["lattice"]` of one section.
    size
        Side in sites.
    n_regions
        Number of regions; fewer where no more fit.
    rng
        Seed or generator.

    Returns
    -------
    numpy.ndarray
        bool, shape (n_obs,): True where hidden, for all observations of a site alike.

    Raises
    ------
    ValueError
        A lattice that is none, `size` or `n_regions` below 1, or no region of that size fits.
    """
    sites = as_sites(lattice, "lattice")
    check_positive_int("size", size)
    check_positive_int("n_regions", n_regions)
    sites = sites - sites.min(0)
    filled = np.zeros(sites.max(0) + 1, dtype=np.int64)
    filled[sites[:, 0], sites[:, 1]] = 1
    taken = np.zeros(filled.shape, dtype=bool)
    corners = np.empty((0, 2), dtype=np.int64)
    if size <= min(filled.shape):
        total = np.pad(filled, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        inside = total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size]
        corners = np.argwhere(inside == size**2)
    if not len(corners):
        msg = f"No {size} x {size} region lies wholly on tissue (lattice of {filled.shape[0]} x {filled.shape[1]}). "
        msg += "Choose a smaller `size`."
        raise ValueError(msg)
    found = 0
    for row, col in np.random.default_rng(rng).permutation(corners):
        window = (slice(row, row + size), slice(col, col + size))
        if not taken[window].any():
            taken[window] = True
            found += 1
            if found == n_regions:
                break
    return taken[sites[:, 0], sites[:, 1]]


@checked
def interpolate_hidden(
    expression: Any,
    positions: ArrayLike,
    hidden: ArrayLike,
    *,
    method: Literal["nearest", "gaussian", "pca", "zero"] = "nearest",
    n_neighbors: int = 6,
    bandwidth: float | None = None,
    n_components: int = 30,
    rng: int | np.random.Generator | None = 0,
) -> np.ndarray:
    """Fill hidden observations from seen ones, as a baseline for :func:`stimg.tl.reconstruct`.

    Parameters
    ----------
    expression
        Log-normalised expression, dense or sparse, shape (n_obs, n_genes). Hidden rows are not read.
    positions
        True positions, shape (n_obs, 2).
    hidden
        bool, shape (n_obs,), e.g. of :func:`hide_regions`.
    method
        `"nearest"`: mean of the `n_neighbors` nearest seen observations. `"gaussian"`: mean of the 64 nearest seen
        ones, weighted by a Gaussian of their distance. `"pca"`: the same of the slide's principal components, fitted
        on seen observations, then back to genes (cut at 0 if the expression has no negative value). `"zero"`: zeros.
    n_neighbors
        Of `"nearest"`.
    bandwidth
        Standard deviation of the Gaussian, in the unit of `positions`. By default 1.5 times the median distance
        between nearest observations.
    n_components
        Of `"pca"`.
    rng
        Seed or generator of the decomposition.

    Returns
    -------
    numpy.ndarray
        float32, shape (hidden.sum(), n_genes), in the order of the hidden observations.

    Raises
    ------
    ValueError
        Shapes that do not fit, an unknown method, nothing hidden, or nothing seen.
    """
    check_choice("method", method, METHODS)
    check_positive_int("n_neighbors", n_neighbors)
    check_positive_int("n_components", n_components)
    if bandwidth is not None:
        check_positive("bandwidth", bandwidth)
    shape = np.shape(expression)
    if len(shape) != 2 or 0 in shape:
        msg = f"Expected `expression` of shape (n_obs, n_genes), found {shape}."
        raise ValueError(msg)
    points = as_points(positions, "positions", shape[0], 2)
    mask = np.asarray(hidden)
    if mask.dtype != bool or mask.shape != (shape[0],):
        msg = f"Expected `hidden` to be bool of shape ({shape[0]},), found {mask.dtype} of {mask.shape}."
        raise ValueError(msg)
    if mask.all() or not mask.any():
        msg = f"Expected hidden and seen observations, found {int(mask.sum())} of {mask.size} hidden."
        raise ValueError(msg)
    if method == "zero":
        return np.zeros((int(mask.sum()), shape[1]), dtype=np.float32)
    matrix = sparse.csr_array(expression) if sparse.issparse(expression) else np.asarray(expression)
    seen = matrix[np.flatnonzero(~mask)]
    if not np.isfinite(seen.data if sparse.issparse(seen) else seen).all():
        msg = "`expression` has NaN or infinite values in seen observations. Remove or replace them."
        raise ValueError(msg)
    if method == "nearest":
        weights = _weights(points, mask, n_neighbors, None)
    else:
        between = float(np.nan_to_num(spacing(np.unique(points, axis=0)), nan=1.0))  # 1 where all coincide
        weights = _weights(points, mask, KERNEL_NEIGHBOURS, bandwidth or 1.5 * between)
    if method == "pca":
        return _through_components(seen, weights, n_components, rng)
    filled = weights @ seen
    return np.asarray(filled.toarray() if sparse.issparse(filled) else filled, dtype=np.float32)


def _weights(points: np.ndarray, hidden: np.ndarray, n_neighbors: int, sigma: float | None) -> sparse.csr_array:
    """Return (n_hidden, n_seen) weights of the nearest seen observations, rows summing to 1; equal without `sigma`."""
    from scipy.spatial import cKDTree

    seen = points[~hidden]
    k = min(n_neighbors, len(seen))
    distance, near = cKDTree(seen).query(points[hidden], k=range(1, k + 1))
    weight = np.ones_like(distance)
    if sigma is not None:
        # relative to the nearest one, so that the middle of a large region does not underflow
        weight = np.exp((distance[:, :1] ** 2 - distance**2) / (2 * sigma**2))
    weight /= weight.sum(1, keepdims=True)
    starts = np.arange(0, near.size + 1, k)
    return sparse.csr_array((weight.ravel(), near.ravel(), starts), shape=(len(distance), len(seen)))


def _through_components(
    seen: Any, weights: sparse.csr_array, n_components: int, rng: int | np.random.Generator | None
) -> np.ndarray:
    """Interpolate principal components and return to genes."""
    from sklearn.decomposition import PCA

    n_components = min(n_components, *(side - 1 for side in seen.shape))
    if n_components < 1:
        msg = f"Expected at least 2 seen observations and 2 genes for `method='pca'`, found {seen.shape}."
        raise ValueError(msg)
    state = int(np.random.default_rng(rng).integers(2**31))
    pca = PCA(n_components, svd_solver="arpack", random_state=state)
    scores = pca.fit_transform(seen.astype(np.float64))
    filled = pca.inverse_transform(weights @ scores)
    lowest = seen.data.min(initial=0) if sparse.issparse(seen) else seen.min()
    return np.asarray(np.maximum(filled, 0) if lowest >= 0 else filled, dtype=np.float32)
