"""Hidden regions, what simple interpolation makes of them, and scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import sparse

from stimg._validators import check_choice, check_positive_int

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

COMPONENTS = 30


def reconstruction_scores(true: Any, predicted: ArrayLike, *, hidden: ArrayLike | None = None) -> dict[str, float]:
    """Compare predicted with measured expression.

    Parameters
    ----------
    true
        Measured values, dense or sparse, shape (n_obs, n_genes).
    predicted
        Predicted values, same shape.
    hidden
        bool, shape (n_obs,): the observations that count; all by default.

    Returns
    -------
    dict
        `mse`, `mae`, `pearson` (mean over genes of the correlation over observations) and `n_genes_undefined` (genes
        without variance on either side, left out of `pearson`). Genes that are NaN in `predicted` are left out.

    Raises
    ------
    ValueError
        Shapes differ, or nothing is hidden.
    """
    a = true.toarray() if sparse.issparse(true) else np.asarray(true)
    b = np.asarray(predicted)
    if a.shape != b.shape or a.ndim != 2:
        msg = f"Expected `predicted` of the shape of `true`, {a.shape}, found {b.shape}."
        raise ValueError(msg)
    if hidden is not None:
        mask = np.asarray(hidden)
        if mask.dtype != bool or mask.shape != (len(a),) or not mask.any():
            msg = f"Expected `hidden` as bool of shape ({len(a)},) with at least one True."
            raise ValueError(msg)
        a, b = a[mask], b[mask]
    known = np.isfinite(b).all(0)
    a, b = a[:, known].astype(np.float64), b[:, known].astype(np.float64)
    x, y = a - a.mean(0), b - b.mean(0)
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    defined = scale > 1e-12
    correlation = (x * y).sum(0)[defined] / scale[defined]
    return {
        "mse": float(((a - b) ** 2).mean()),
        "mae": float(np.abs(a - b).mean()),
        "pearson": float(correlation.mean()) if defined.any() else float("nan"),
        "n_genes_undefined": float((~defined).sum()),
    }


def hide_regions(
    lattice: ArrayLike, size: int, *, n_regions: int = 5, rng: int | np.random.Generator | None = 0
) -> np.ndarray:
    """Choose square regions that lie wholly on tissue and do not overlap.

    Parameters
    ----------
    lattice
        int, shape (n_obs, 2): `.obsm["lattice"]` of one section.
    size
        Side in sites.
    n_regions
        Number of regions; fewer where no more fit.
    rng
        Seed or generator.

    Returns
    -------
    ndarray
        bool, shape (n_obs,): True where hidden.

    Raises
    ------
    ValueError
        No region of that size fits.
    """
    check_positive_int("size", size)
    check_positive_int("n_regions", n_regions)
    places = np.asarray(lattice)
    filled = np.zeros(places.max(0) + 1, dtype=bool)
    filled[places[:, 0], places[:, 1]] = True
    taken = np.zeros_like(filled)
    found = 0
    corners = np.argwhere(filled[: max(filled.shape[0] - size + 1, 0), : max(filled.shape[1] - size + 1, 0)])
    for row, col in np.random.default_rng(rng).permutation(corners):
        window = (slice(row, row + size), slice(col, col + size))
        if filled[window].all() and not taken[window].any():
            taken[window] = True
            found += 1
            if found == n_regions:
                break
    if not found:
        msg = f"No {size} x {size} region lies wholly on tissue. Choose a smaller `size`."
        raise ValueError(msg)
    return taken[places[:, 0], places[:, 1]]


def interpolate_hidden(
    expression: Any,
    positions: ArrayLike,
    hidden: ArrayLike,
    *,
    method: Literal["nearest", "gaussian", "pca", "zero"] = "nearest",
    n_neighbors: int = 6,
    bandwidth: float = 2.0,
) -> np.ndarray:
    """Fill hidden observations from seen ones, as a baseline for :func:`stimg.tl.reconstruct`.

    Parameters
    ----------
    expression
        Dense or sparse, shape (n_obs, n_genes). Hidden rows are not looked at.
    positions
        Shape (n_obs, 2), in units of the pitch.
    hidden
        bool, shape (n_obs,).
    method
        `"nearest"`: mean of the `n_neighbors` nearest seen observations. `"gaussian"`: mean of the `10 *
        n_neighbors` nearest, weighted by a Gaussian of `bandwidth` beyond the nearest one. `"pca"`: the same in the
        space of 30 principal components of the seen observations. `"zero"`: zeros.
    n_neighbors, bandwidth
        See `method`.

    Returns
    -------
    ndarray
        float32, shape (n_hidden, n_genes).

    Raises
    ------
    ValueError
        Nothing is hidden, nothing is seen, or shapes differ.
    """
    check_choice("method", method, ("nearest", "gaussian", "pca", "zero"))
    check_positive_int("n_neighbors", n_neighbors)
    mask = np.asarray(hidden, dtype=bool)
    if mask.shape != (expression.shape[0],) or not mask.any() or mask.all():
        msg = f"Expected `hidden` as bool of shape ({expression.shape[0]},), neither all nor none."
        raise ValueError(msg)
    if method == "zero":
        return np.zeros((int(mask.sum()), expression.shape[1]), dtype=np.float32)
    from scipy.spatial import cKDTree

    places = np.asarray(positions, dtype=np.float64)
    seen = sparse.csr_array(expression)[np.flatnonzero(~mask)]
    count = min(n_neighbors if method == "nearest" else 10 * n_neighbors, seen.shape[0])
    distances, near = cKDTree(places[~mask]).query(places[mask], k=np.arange(1, count + 1))
    beyond = distances - distances[:, :1]
    weights = np.ones_like(distances) if method == "nearest" else np.exp(-0.5 * (beyond / bandwidth) ** 2)
    weights /= weights.sum(1, keepdims=True)
    rows = np.repeat(np.arange(len(near)), count)
    mix = sparse.csr_array((weights.ravel(), (rows, near.ravel())), shape=(len(near), seen.shape[0]))
    if method != "pca":
        return (mix @ seen).toarray().astype(np.float32)
    from sklearn.decomposition import PCA

    components = PCA(min(COMPONENTS, *seen.shape), svd_solver="randomized", random_state=0)
    scores = components.fit_transform(seen.toarray())
    return components.inverse_transform(mix @ scores).astype(np.float32)
