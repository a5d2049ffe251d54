"""A grid of spots over an image."""

import numpy as np
import pytest

import stimg


@pytest.fixture(scope="module")
def pixels():
    image = np.full((600, 900, 3), 240, dtype=np.uint8)
    image[100:500, 200:800] = [180, 90, 150]
    return image


def test_sites_lie_on_tissue(pixels):
    grid = stimg.pp.image_grid(pixels, ["A", "B"], pitch_um=100, image_mpp=2.0)
    assert grid.shape == (8 * 12, 2)
    x, y = grid.obsm["spatial"].T
    assert (x.min(), x.max(), y.min(), y.max()) == (225, 775, 125, 475)
    assert grid.X.nnz == 0
    library = grid.uns["spatial"]["image"]
    assert library["scalefactors"]["spot_diameter_fullres"] == 50
    assert library["images"]["hires"].shape == pixels.shape
    assert grid.uns["stimg"]["lattice"]["pitch_um"] == 100
    assert grid.obsm["lattice"].max(0).tolist() == [7, 11]


def test_the_preview_of_a_large_image_is_scaled(pixels):
    large = np.kron(pixels, np.ones((3, 3, 1), dtype=np.uint8))
    grid = stimg.pp.image_grid(large, ["A"], image_mpp=1.0)
    library = grid.uns["spatial"]["image"]
    assert max(library["images"]["hires"].shape) == 2000
    assert library["scalefactors"]["tissue_hires_scalef"] == pytest.approx(2000 / 2700)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pitch_um": 0}, "`pitch_um`"),
        ({"diameter_um": -1}, "`diameter_um`"),
        ({"image_mpp": "2"}, "`image_mpp`"),
        ({"image_mpp": None}, "`image_mpp`"),
        ({"genes": ["A", "A"]}, "`genes`"),
        ({"genes": "A"}, "`genes`"),
        ({"pitch_um": 1e5}, "tissue"),
    ],
)
def test_bad_input(pixels, options, message):
    with pytest.raises(ValueError, match=message):
        stimg.pp.image_grid(pixels, **({"genes": ["A"], "image_mpp": 2.0} | options))
