"""A layered synthetic slide with known domains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from stimg import _keys
from stimg._files import check_new_path, written_whole
from stimg._input._checks import check_choice, check_positive, check_positive_int, checked
from stimg._platforms import PLATFORMS
from stimg._slide._geometry import site_positions
from stimg.datasets._reading import set_spatial

if TYPE_CHECKING:
    from collections.abc import Iterator

PITCH_PX = 20.0
IMAGE_PX = 400
N_PROGRAMS = 6
DISPERSION = 0.3
GENE_SEED = 2026
VALUES_A_BLOCK = 2**25
# Mean H&E colours: pink stroma to purple, cell-dense layers.
STAINS = np.array([[236, 190, 210], [214, 150, 190], [186, 120, 175], [160, 100, 165], [225, 170, 180]])


@checked
def synthetic(
    platform: str = "visium",
    *,
    n_domains: int = 5,
    n_obs: int = 1000,
    n_genes: int = 500,
    depth: float = 600.0,
    seed: int = 0,
    path: str | Path | None = None,
) -> AnnData:
    """Make a slide of curved layers with realistic counts and a matching image.

    Every domain has marker genes. Across domains run smooth gradients and gene modules that vary within them. Counts
    are gamma-Poisson with log-normal depth and expression levels, so that most entries are zero.

    Parameters
    ----------
    platform
        `"visium"` or `"hex"` gives a hexagonal array; `"st"`, `"visium_hd"`, `"stereo_seq"` or `"square"` a square
        one; `"free"` and the imaging platforms of :func:`stimg.pp.to_lattice` give cells at random places.
    n_domains
        Number of layers.
    n_obs, n_genes
        Number of observations and of genes, at least 10 of each, and at least `n_domains`.
    depth
        Mean counts per observation.
    seed
        The same seed gives the same slide. Slides with different seeds share their gene programs, as sections of one
        tissue do.
    path
        A new `.h5ad` file to which the slide is written in chunks of rows, for slides that are larger than memory. A
        million bins of 18,000 genes take a quarter of an hour.

    Returns
    -------
    AnnData
        Counts in `.X` (CSR, float32), `.obs["domain"]` (categorical), `.obs["array_row"]` and `.obs["array_col"]` for
        arrays, `.obsm["spatial"]` in pixels, and the image in `.uns["spatial"]["synthetic"]`. With `path`, the object
        is backed by that file.

    Raises
    ------
    ValueError
        The platform is unknown, a number is too small, or `path` does not end in `.h5ad`.
    FileExistsError
        `path` exists.

    Examples
    --------
    >>> stimg.datasets.synthetic("xenium", n_domains=4, seed=1).shape
    (1000, 500)
    >>> stimg.datasets.synthetic("visium_hd", n_obs=5000, n_genes=100, path="bins.h5ad").isbacked
    True
    """
    check_choice("platform", platform, tuple(PLATFORMS))
    check_positive_int("n_domains", n_domains)
    check_positive_int("n_obs", n_obs, minimum=max(10, n_domains))
    check_positive_int("n_genes", n_genes, minimum=max(10, n_domains))
    check_positive("depth", depth)
    if path is not None:
        path = Path(path)
        if path.suffix != ".h5ad":
            msg = f"Expected `path` to end in '.h5ad', found {str(path)!r}."
            raise ValueError(msg)
        check_new_path(path)
    rng = np.random.default_rng(seed)
    coordinates, array = _places(PLATFORMS[platform].kind, n_obs, rng)
    unit = (coordinates - coordinates.min(0)) / np.ptp(coordinates, axis=0).max()
    depth_in_tissue = _layer_depth(unit)
    edges = np.quantile(depth_in_tissue, np.linspace(0, 1, n_domains + 1)[1:-1])
    domain = np.digitize(depth_in_tissue, edges)
    blocks = _count_blocks(unit, domain, n_domains, n_genes, depth, rng)
    obs = pd.DataFrame(index=[f"spot{i}" for i in range(n_obs)])
    obs["domain"] = pd.Categorical.from_codes(domain, [f"layer{i + 1}" for i in range(n_domains)])
    if array is not None:
        obs[_keys.ARRAY_ROW], obs[_keys.ARRAY_COL] = array.T
    var = pd.DataFrame(index=[f"GENE{i:05d}" for i in range(n_genes)])
    if path is None:
        adata = AnnData(sparse.vstack(list(blocks), format="csr"), obs=obs, var=var)
        _add_image(adata, coordinates, edges, rng)
        return adata
    with written_whole(path, overwrite=False) as unfinished, h5py.File(unfinished, "w") as file:
        ad.io.write_elem(file, "X", next(blocks))  # its size sets that of the file's chunks
        stored = ad.io.sparse_dataset(file["X"])
        for block in blocks:
            stored.append(block)
        rest = AnnData(obs=obs, var=var)
        _add_image(rest, coordinates, edges, rng)
        for name, value in (("obs", obs), ("var", var), ("obsm", dict(rest.obsm)), ("uns", dict(rest.uns))):
            ad.io.write_elem(file, name, value)
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    return ad.read_h5ad(path, backed="r")


def _places(kind: str, n_obs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Return coordinates in pixels and array indices of the `n_obs` places nearest to a wavy ellipse's centre."""
    side = int(np.ceil(np.sqrt(2.2 * n_obs))) + 2
    array = None
    if kind == "free":
        points = rng.uniform(0, side, size=(3 * n_obs, 2))
    else:
        rows, cols = (part.ravel() for part in np.mgrid[:side, :side])
        array = np.column_stack([rows, 2 * cols + rows % 2 if kind == "hex" else cols])
        points = site_positions(np.column_stack([rows, cols]), kind)
    centred = (points - points.mean(0)) * [0.85, 1.0]
    angle = np.arctan2(centred[:, 1], centred[:, 0])
    outline = 1 + 0.08 * np.sin(3 * angle + 1) + 0.05 * np.cos(5 * angle)
    radius = np.linalg.norm(centred, axis=1) / outline
    inside = radius <= np.sort(radius)[: int(1.2 * n_obs) if kind == "free" else n_obs].max()
    chosen = np.flatnonzero(inside)[:n_obs] if kind == "free" else np.argsort(radius, kind="stable")[:n_obs]
    chosen = rng.permutation(chosen)
    return (points[chosen] + 2) * PITCH_PX, None if array is None else array[chosen]


def _layer_depth(unit: np.ndarray) -> np.ndarray:
    """Return the depth below a curved surface, for coordinates scaled to the unit square."""
    return np.hypot(0.8 * (unit[:, 0] - 0.5), unit[:, 1] + 0.35) + 0.03 * np.sin(9 * unit[:, 0])


def _count_blocks(
    unit: np.ndarray, domain: np.ndarray, n_domains: int, n_genes: int, depth: float, rng: np.random.Generator
) -> Iterator[sparse.csr_matrix]:
    """Yield gamma-Poisson counts by blocks of rows; markers, gradients and modules use the same genes for all seeds."""
    genes = np.random.default_rng(GENE_SEED)
    base = genes.normal(0, 1.6, n_genes)
    owner = genes.permutation(n_genes)[: n_genes // 3] % n_domains
    markers = genes.permutation(n_genes)[: len(owner)]
    excess = genes.uniform(0.6, 1.5, len(owner))
    waves = rng.normal(0, 4, (2, N_PROGRAMS))
    programs = np.sin(unit @ waves + rng.uniform(0, 2 * np.pi, N_PROGRAMS))
    programs[:, N_PROGRAMS // 2 :] = rng.normal(size=(len(unit), N_PROGRAMS - N_PROGRAMS // 2))
    loadings = genes.normal(0, 0.35, (N_PROGRAMS, n_genes)) * (genes.random((N_PROGRAMS, n_genes)) < 0.2)
    depths = depth * rng.lognormal(-0.08, 0.4, (len(unit), 1))
    step = max(1, VALUES_A_BLOCK // n_genes)
    for start in range(0, len(unit), step):
        rows = slice(start, start + step)
        log_rate = base + programs[rows] @ loadings
        log_rate[:, markers] += np.where(domain[rows, None] == owner[None], excess, 0)
        rate = np.exp(log_rate)
        rate *= depths[rows] / rate.sum(1, keepdims=True)
        rate *= rng.gamma(1 / DISPERSION, DISPERSION, rate.shape)
        yield sparse.csr_matrix(rng.poisson(rate).astype(np.float32))


def _add_image(adata: AnnData, coordinates: np.ndarray, edges: np.ndarray, rng: np.random.Generator) -> None:
    """Set the coordinates, and an H&E-like uint8 image of the layers."""
    from scipy.spatial import cKDTree

    scale = float(IMAGE_PX / (coordinates.max() + 2 * PITCH_PX))
    rows, cols = np.mgrid[:IMAGE_PX, :IMAGE_PX]
    pixels = np.column_stack([cols.ravel(), rows.ravel()]) / scale
    unit = (pixels - coordinates.min(0)) / np.ptp(coordinates, axis=0).max()
    layer = np.digitize(_layer_depth(unit), edges)
    colours = STAINS[layer % len(STAINS)] + rng.normal(0, 9, (len(pixels), 1))
    nuclei = rng.random(len(pixels)) < 0.04 + 0.05 * (layer % 3)
    colours[nuclei] = [92, 60, 130]
    colours[cKDTree(coordinates).query(pixels)[0] > 1.2 * PITCH_PX] = 243
    image = np.clip(colours, 0, 255).astype(np.uint8).reshape(IMAGE_PX, IMAGE_PX, 3)
    factors = {"tissue_lowres_scalef": scale, "tissue_hires_scalef": scale, "spot_diameter_fullres": 0.55 * PITCH_PX}
    set_spatial(adata, "synthetic", coordinates, factors, images={"lowres": image})
