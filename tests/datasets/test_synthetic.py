import numpy as np
import pytest
from scipy import sparse
from scipy.spatial import cKDTree

from stimg.datasets import synthetic

PLATFORMS = ["visium", "st", "xenium"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_contents(platform):
    slide = synthetic(platform, n_domains=3, n_obs=300, n_genes=60)
    assert slide.shape == (300, 60)
    assert sparse.issparse(slide.X)
    assert slide.X.format == "csr"
    assert (slide.X.data == np.rint(slide.X.data)).all()
    assert slide.X.data.min() > 0
    assert slide.obs["domain"].dtype == "category"
    assert slide.obs["domain"].value_counts().min() >= 90
    assert slide.obsm["spatial"].shape == (300, 2)
    assert ("array_row" in slide.obs) == (platform != "xenium")


@pytest.mark.parametrize("platform", PLATFORMS)
def test_seed_decides(platform):
    first, again, other = (synthetic(platform, n_obs=100, n_genes=30, seed=s) for s in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    np.testing.assert_array_equal(first.obsm["spatial"], again.obsm["spatial"])
    np.testing.assert_array_equal(
        first.uns["spatial"]["synthetic"]["images"]["lowres"], again.uns["spatial"]["synthetic"]["images"]["lowres"]
    )
    assert (first.X != other.X).nnz


def test_hex_array_is_visiums(slide_hex):
    row, col = slide_hex.obs["array_row"], slide_hex.obs["array_col"]
    assert ((row + col) % 2 == 0).all()
    assert not slide_hex.obs[["array_row", "array_col"]].duplicated().any()
    distance = cKDTree(slide_hex.obsm["spatial"]).query(slide_hex.obsm["spatial"], k=7)[0]
    pitch = distance[:, 1].min()
    assert np.isclose(distance[:, 1:], pitch).all(1).mean() > 0.7  # six neighbours at one distance


def test_square_array(slide_square):
    array = slide_square.obs[["array_col", "array_row"]].to_numpy()
    places = slide_square.obsm["spatial"]
    np.testing.assert_allclose(places - places[0], 20.0 * (array - array[0]))


def test_domains_are_coherent_and_expressed():
    from stimg.metrics import domain_scores, probe

    slide = synthetic(n_obs=500, n_genes=400)
    labels, places = slide.obs["domain"], slide.obsm["spatial"]
    assert domain_scores(None, labels, coordinates=places)["pas"] < 0.1
    values = np.log1p(slide.X.toarray())
    assert probe(values, labels, places, method="logistic")["accuracy"] > 0.6


def test_counts_are_sparse_and_overdispersed_and_depth_varies():
    slide = synthetic(n_obs=500, n_genes=300, depth=400)
    totals = np.asarray(slide.X.sum(1)).ravel()
    assert totals.mean() == pytest.approx(400, rel=0.15)
    assert totals.std() / totals.mean() > 0.25
    assert 0.5 < 1 - slide.X.nnz / (500 * 300) < 0.95


@pytest.mark.parametrize("platform", PLATFORMS)
def test_image_shows_the_tissue_where_the_spots_are(platform):
    slide = synthetic(platform, n_obs=300, n_genes=30)
    library = slide.uns["spatial"]["synthetic"]
    image, factors = library["images"]["lowres"], library["scalefactors"]
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    pixels = (slide.obsm["spatial"] * factors["tissue_lowres_scalef"]).astype(int)
    assert (pixels >= 0).all()
    assert (pixels < image.shape[1::-1]).all()
    assert (image[pixels[:, 1], pixels[:, 0]].min(1) < 243).mean() > 0.99
    assert (image == 243).all(2).mean() > 0.1
    assert factors["spot_diameter_fullres"] > 0


def test_it_can_be_written(tmp_path, slide_free):
    slide_free.write_h5ad(tmp_path / "slide.h5ad")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"platform": "sequins"}, "platform"),
        ({"n_domains": 0}, "n_domains"),
        ({"n_obs": 3}, "n_obs"),
        ({"n_genes": 2.5}, "n_genes"),
        ({"depth": 0}, "depth"),
        ({"depth": np.nan}, "depth"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**arguments)
