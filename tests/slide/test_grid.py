"""A regular grid of coordinates is found, whatever happened to it, and only where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from stimg._slide._geometry import ROW_HEIGHT
from stimg._slide._grid import SITE_AREA, find_grid

FOLDER = Path(os.environ.get("STIMG_DATA_DIR") or Path(__file__).parents[3] / "shared" / "data")
REAL = sorted(FOLDER.glob("*/*.h5ad")) if FOLDER.is_dir() else []


def grid_of(kind, rows=30, cols=25):
    row, col = (part.ravel().astype(float) for part in np.mgrid[:rows, :cols])
    return np.column_stack([col + row % 2 / 2, row * ROW_HEIGHT] if kind == "hex" else [col, row])


def turned(points, degrees):
    angle = np.deg2rad(degrees)
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def off_grid(points, rng, share=0.03):
    off = rng.random(len(points)) < share
    return points + np.where(off[:, None], rng.uniform(-0.5, 0.5, points.shape), 0)


CHANGES = {
    "whole": lambda x, rng: x,
    "half of the spots": lambda x, rng: x[rng.random(len(x)) < 0.5],
    "a quarter of the bins": lambda x, rng: x[rng.random(len(x)) < 0.25],
    "a hole": lambda x, rng: x[((x - x.mean(0)) ** 2).sum(1) > 40],
    "one row twice": lambda x, rng: np.r_[x, x[:1]],
    "4 % twice": lambda x, rng: np.r_[x, x[rng.choice(len(x), len(x) // 25, replace=False)]],
    "jitter of 5 %": lambda x, rng: x + rng.normal(0, 0.05, x.shape),
    "jitter of 10 %": lambda x, rng: x + rng.normal(0, 0.10, x.shape),
    "3 % off the grid": off_grid,
    "an axis 10 % shorter": lambda x, rng: x * [0.9, 1] / np.sqrt(0.9),
    "any order": lambda x, rng: rng.permutation(x),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["hex", "square"])
def test_grids_are_found(kind, change):
    rng = np.random.default_rng(0)
    for degrees in (0, 17, 45, 90, 211):
        points = turned(CHANGES[change](grid_of(kind), rng), degrees) * 13.7 + 1000
        grid = find_grid(points)
        assert grid is not None, degrees
        assert grid.kind == kind
        assert np.sqrt(grid.area / SITE_AREA[kind]) == pytest.approx(13.7, rel=0.01)
        sites = len(np.unique(grid.array, axis=0))
        assert len(points) - sites <= 0.05 * len(points)
        if "off" not in change:
            assert grid.n_off == 0
            assert sites == len(np.unique(points, axis=0))


@pytest.mark.parametrize("kind", ["hex", "square"])
@pytest.mark.parametrize("pitch", [11, 6.2, 3.4])  # of Visium spots in its high- and low-resolution images
def test_rounded_pixels(kind, pitch):
    for degrees in (0, 3, 90):
        points = np.rint(turned(grid_of(kind, 78, 64), degrees) * pitch + 50)
        grid = find_grid(points)
        assert grid is not None
        assert grid.kind == kind
        assert len(np.unique(grid.array, axis=0)) == len(points)


def test_points_twice_on_one_site_are_counted():
    points = grid_of("square")
    grid = find_grid(np.r_[points, points[:7], points[:7]])
    np.testing.assert_array_equal(grid.array[-7:], grid.array[:7])
    assert len(np.unique(grid.array, axis=0)) == len(points)


def test_random_points_lie_on_no_grid():
    rng = np.random.default_rng(0)
    for number in range(1200):
        n_obs = int(rng.choice([16, 20, 30, 50, 100, 300]))
        points = rng.uniform(0, 1, (n_obs, 2)) if number % 2 else rng.normal(size=(n_obs, 2)) * [1, 3]
        assert find_grid(points) is None, number


@pytest.mark.parametrize("distance", [0.6, 0.75, 0.85])
def test_cells_that_keep_apart_lie_on_no_grid(distance):
    """Cells laid down one by one where none is nearer than `distance`, in units of the mean distance."""
    rng = np.random.default_rng(0)
    kept = np.zeros((0, 2))
    for _ in range(30):
        for point in rng.uniform(0, 22, (300, 2)):
            if not len(kept) or ((kept - point) ** 2).sum(1).min() > distance**2:
                kept = np.r_[kept, point[None]]
    assert find_grid(kept) is None


def test_cells_with_rounded_coordinates_lie_on_no_grid():
    rng = np.random.default_rng(0)
    for coarse in (3, 5, 10, 50):  # pixels between cells
        assert find_grid(np.rint(rng.uniform(0, 20 * coarse, (400, 2)))) is None, coarse


@pytest.mark.parametrize("points", [np.ones((20, 2)), np.column_stack([np.arange(20.0)] * 2), np.eye(2)])
def test_points_without_area(points):
    assert find_grid(points) is None


@pytest.mark.real
@pytest.mark.skipif(not REAL, reason=f"no real slides in {FOLDER}: set STIMG_DATA_DIR")
@pytest.mark.parametrize("path", REAL, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_real_slides(path):
    """Coordinates of every array give its positions back (up to a change of axes); those of cells and beads do not."""
    backed = ad.read_h5ad(path, backed="r")
    points = np.asarray(backed.obsm["spatial"], dtype=np.float64)
    array = backed.obs[["array_row", "array_col"]].to_numpy(float) if "array_row" in backed.obs else None
    backed.file.close()
    grid = find_grid(points)
    if array is None:
        assert (grid is None) == (path.stem != "visium_breast_eevee")  # spots without their array positions
        return
    assert grid is not None
    assert len(np.unique(grid.array, axis=0)) == len(np.unique(array, axis=0))
    if path.stem not in ("1_CN73_E1_HE", "2_CN73_E2_HE_"):  # bent by half a pitch
        design = np.column_stack([array, np.ones(len(array))])
        change = np.linalg.lstsq(design, grid.array, rcond=None)[0]
        np.testing.assert_allclose(design @ change, grid.array, atol=1e-6)
