"""A synthetic slide with an H&E image that determines a known dense expression map."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import ndimage, sparse

from stimg import _keys
from stimg._image._footprints import disk_footprints
from stimg._input._checks import check_positive, check_positive_int, checked
from stimg.datasets._reading import set_spatial

MPP = 2.0
MAP_PX = 4  # pixels of the image in one pixel of the map, on each side
SPOT_UM, PITCH_UM = 100.0, 200.0
MARGIN_UM = 150.0
GENE_SEED = 2026
MOST_VALUES = 2**29  # 4 GB while the map is made
# For each cell type: the most nuclei in a square of 100 um, their radius in um, and their colour.
CELL_TYPES = ((30.0, 5.0, (92, 50, 130)), (12.0, 3.5, (150, 70, 150)), (60.0, 3.0, (48, 30, 105)))
BETWEEN = np.array([(214, 160, 200), (236, 168, 196), (205, 175, 215)])  # colour of the tissue between the nuclei


@checked
def synthetic_histology(
    *, n_rows: int = 18, n_cols: int = 18, n_genes: int = 30, depth: float = 2000.0, seed: int = 0
) -> AnnData:
    """Make a legacy ST slide with an H&E-like image and the true expression at every place in it.

    Three cell types share the tissue in smooth, overlapping regions with clusters. They differ in the size, colour and
    density of their nuclei, and each expresses its own genes. The map is the expression of all nuclei, each spread over
    about one cell. A spot's counts are Poisson; their mean is the integral of the map over the spot's disk.

    Parameters
    ----------
    n_rows, n_cols
        Rows and columns of the square array of spots, which are 100 micrometres wide at a pitch of 200.
    n_genes
        Number of genes.
    depth
        Mean counts per spot.
    seed
        Seed of the tissue and the counts. All slides have the same genes, whatever their seed.

    Returns
    -------
    AnnData
        Counts in `.X` (CSR), `.obsm["spatial"]` in pixels of the image (2 micrometres each),
        `.uns["spatial"]["histology"]` with the image as `hires` at scale 1, `.obs["array_row"]`, `.obs["array_col"]`.
        `.uns["stimg_truth"]`: `map` float32 (n_genes, height, width), in pixels of 8 micrometres, the counts that a
        spot would have if its whole area were like that pixel; `genes`; `mpp`.

    Raises
    ------
    ValueError
        There are too few rows, columns or genes, or more than memory is likely to hold; or `depth` is not positive.
    """
    for name, value in (("n_rows", n_rows), ("n_cols", n_cols), ("n_genes", n_genes)):
        check_positive_int(name, value, minimum=2)
    check_positive("depth", depth)
    unit = MPP * MAP_PX
    shape = tuple(int(np.ceil(((n - 1) * PITCH_UM + 2 * MARGIN_UM) / unit)) for n in (n_rows, n_cols))
    if (size := n_genes * shape[0] * shape[1]) > MOST_VALUES:
        msg = (
            f"Expected a map of at most {MOST_VALUES:,} values, found {size:,} for `n_rows` x `n_cols` = {n_rows} x "
            f"{n_cols} spots and `n_genes` = {n_genes}. Ask for fewer of them."
        )
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    share = _shares(shape, unit, rng)
    nuclei = _nuclei(share, unit, rng)
    pixels = _draw(share, nuclei, unit, rng)
    profile = _profiles(n_genes)
    cells = [np.zeros(shape) for _ in CELL_TYPES]
    for density, places in zip(cells, nuclei, strict=True):
        np.add.at(density, tuple((places / unit).astype(int).T), 1.0)
    spread = np.stack([ndimage.gaussian_filter(density, 1.0) for density in cells])
    rate = np.einsum("tg,thw->ghw", profile, spread)
    rate *= depth / (rate.sum(0).mean() * np.pi * (SPOT_UM / 2 / unit) ** 2)
    rows, cols = (part.ravel() for part in np.mgrid[:n_rows, :n_cols])
    centres = MARGIN_UM + PITCH_UM * np.stack([rows, cols], 1).astype(float)
    area = disk_footprints(centres / unit, SPOT_UM / 2 / unit, (shape[0], shape[1]))
    counts = rng.poisson(area @ rate.reshape(n_genes, -1).T)
    array = {_keys.ARRAY_ROW: rows.astype(np.int32), _keys.ARRAY_COL: cols.astype(np.int32)}
    obs = pd.DataFrame(array, index=[f"spot{i}" for i in range(len(rows))])
    genes = [f"Gene{i}" for i in range(n_genes)]
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=genes))
    factors = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": SPOT_UM / MPP}
    set_spatial(adata, "histology", centres[:, ::-1] / MPP, factors, images={"hires": pixels})
    whole = rate * np.pi * (SPOT_UM / 2 / unit) ** 2
    adata.uns["stimg_truth"] = {"map": whole.astype(np.float32), "genes": np.array(genes), "mpp": unit}
    return adata


def _shares(shape: tuple[int, ...], unit: float, rng: np.random.Generator) -> np.ndarray:
    """Return the share of each cell type at each place, float64 (n_types, height, width), summing to one."""
    fields = []
    for _ in CELL_TYPES:
        broad = ndimage.gaussian_filter(rng.normal(size=shape), 300 / unit, mode="reflect")
        fine = ndimage.gaussian_filter(rng.normal(size=shape), 40 / unit, mode="reflect")
        fields.append(broad / broad.std() + fine / fine.std())
    strength = np.exp(2.5 * np.stack(fields))
    return strength / strength.sum(0)


def _nuclei(share: np.ndarray, unit: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw the places of each type's nuclei in micrometres, float64 (n, 2) as row and column."""
    places = []
    for part, (density, _, _) in zip(share, CELL_TYPES, strict=True):
        number = rng.poisson(part * density * (unit / 100) ** 2)
        corner = np.repeat(np.argwhere(np.ones(part.shape, dtype=bool)), number.ravel(), axis=0)
        places.append((corner + rng.random(corner.shape)) * unit)
    return places


def _draw(share: np.ndarray, nuclei: list[np.ndarray], unit: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the image, uint8 (height, width, 3)."""
    between = np.einsum("thw,tc->hwc", share, BETWEEN)
    image = np.repeat(np.repeat(between, MAP_PX, 0), MAP_PX, 1)
    texture = ndimage.gaussian_filter(rng.normal(size=image.shape[:2]), (1, 4))
    image += 8 * (texture / texture.std())[..., None]
    for places, (_, radius, colour) in zip(nuclei, CELL_TYPES, strict=True):
        reach = int(np.ceil(radius / MPP)) + 1
        offset = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"), -1).reshape(-1, 2)
        pixel = (places / MPP).astype(int)
        at = pixel[:, None] + offset[None]
        distance = np.sqrt((((at + 0.5) * MPP - places[:, None]) ** 2).sum(2))
        cover = np.clip((radius - distance) / MPP + 0.5, 0, 1)
        inside = ((at >= 0) & (at < image.shape[:2])).all(2)
        alpha = np.zeros(image.shape[:2])
        np.maximum.at(alpha, tuple(at[inside].T), cover[inside])
        image = image * (1 - alpha[..., None]) + alpha[..., None] * np.array(colour)
    return np.clip(np.rint(image + rng.normal(0, 3, image.shape)), 0, 255).astype(np.uint8)


def _profiles(n_genes: int) -> np.ndarray:
    """Return the expression of each gene in each cell type, float64 (n_types, n_genes); each gene marks one type."""
    rng = np.random.default_rng(GENE_SEED)
    level = rng.lognormal(0, 0.7, n_genes)
    profile = np.full((len(CELL_TYPES), n_genes), 0.1)
    profile[np.arange(n_genes) % len(CELL_TYPES), np.arange(n_genes)] = 1.0
    return profile * level
