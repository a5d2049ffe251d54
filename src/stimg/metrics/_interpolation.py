"""Hide regions of a slide and fill them by interpolation, as baselines for reconstruction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from stimg._input._checks import check_choice, check_positive, check_positive_int, checked
from stimg._slide._geometry import spacing
from stimg.metrics._checks import as_mask, as_points, as_sites, refuse_non_finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

METHODS = ("nearest", "gaussian", "pca", "zero")
KERNEL_NEIGHBOURS = 64


@checked
def hide_regions(
    lattice: ArrayLike, size: int, *, n_regions: int = 5, rng: int | np.random.Generator | None = 0
) -> np.ndarray:
    """Choose square regions to hide that lie entirely on tissue and do not overlap.

    Parameters
    ----------
    lattice
        Row and column of every observation, integer, shape (n_obs, 2): `.obsm["lattice"]` of one section.
    size
        Side of a region in sites.
    n_regions
        Number of regions; fewer if no more of them fit.
    rng
        Seed or generator.

    Returns
    -------
    numpy.ndarray
        bool, shape (n_obs,): True where hidden. Observations that share a site are hidden together.

    Raises
    ------
    ValueError
        `lattice` is not a lattice, `size` or `n_regions` is below 1, or no region of that size fits.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic(n_obs=300), copy=True)
    >>> int(stimg.metrics.hide_regions(slide.obsm["lattice"], 3, n_regions=2).sum())
    18
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
        lattice_shape = f"{filled.shape[0]} x {filled.shape[1]}"
        msg = (
            f"No {size} x {size} region lies entirely on tissue (lattice of {lattice_shape}). Choose a smaller `size`."
        )
        raise ValueError(msg)
    for row, col in np.random.default_rng(rng).permutation(corners):
        window = (slice(row, row + size), slice(col, col + size))
        if not taken[window].any():
            taken[window] = True
            n_regions -= 1
            if not n_regions:
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
    """Fill in hidden observations from the ones that are seen, as a baseline for :func:`stimg.tl.reconstruct`.

    Parameters
    ----------
    expression
        Log-normalised expression, dense or sparse, shape (n_obs, n_genes). Hidden rows are not read.
    positions
        True positions, shape (n_obs, 2).
    hidden
        bool, shape (n_obs,), for example from :func:`hide_regions`.
    method
        `"nearest"`: mean of the `n_neighbors` nearest seen observations. `"gaussian"`: mean of the 64 nearest seen
        ones, weighted by a Gaussian of their distance. `"pca"`: the same for principal components fitted on the seen
        observations, then back to genes (cut off at 0 if the expression has no negative value). `"zero"`: zeros.
    n_neighbors, n_components
        Number of neighbours for `"nearest"`, and of principal components for `"pca"`.
    bandwidth
        Standard deviation of the Gaussian, in the unit of `positions`. By default 1.5 times the median distance
        between nearest observations.
    rng
        Seed or generator for the decomposition.

    Returns
    -------
    numpy.ndarray
        float32, shape (hidden.sum(), n_genes), in the order of the hidden observations.

    Raises
    ------
    ValueError
        Shapes do not fit, `method` is unknown, nothing is hidden, or nothing is seen.

    Examples
    --------
    >>> positions, hidden = [[0, 0], [0, 1], [0, 2]], [False, True, False]
    >>> stimg.metrics.interpolate_hidden([[1.0], [0.0], [3.0]], positions, hidden).tolist()
    [[2.0]]
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
    mask = as_mask(hidden, "hidden", shape[:1])
    if mask.all():
        msg = f"Expected hidden and seen observations, found all {mask.size} hidden."
        raise ValueError(msg)
    if method == "zero":
        return np.zeros((int(mask.sum()), shape[1]), dtype=np.float32)
    matrix = sparse.csr_array(expression) if sparse.issparse(expression) else np.asarray(expression)
    seen = matrix[np.flatnonzero(~mask)]
    refuse_non_finite(seen, "`expression` of the seen observations")
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
    """Return weights (n_hidden, n_seen) of the nearest seen observations, equal without `sigma`; rows sum to 1."""
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
    """Interpolate principal components and turn them back into genes."""
    from sklearn.decomposition import PCA

    n_components = min(n_components, *(side - 1 for side in seen.shape))
    if n_components < 1:
        msg = f"Expected at least 2 seen observations and 2 genes for `method='pca'`, found {seen.shape}."
        raise ValueError(msg)
    state = int(np.random.default_rng(rng).integers(2**31))
    pca = PCA(n_components, svd_solver="arpack", random_state=state)
    filled = pca.inverse_transform(weights @ pca.fit_transform(seen.astype(np.float64)))
    lowest = seen.data.min(initial=0) if sparse.issparse(seen) else seen.min()
    return np.asarray(np.maximum(filled, 0) if lowest >= 0 else filled, dtype=np.float32)
