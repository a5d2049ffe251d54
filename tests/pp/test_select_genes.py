from __future__ import annotations

import tracemalloc
import warnings

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import stimg

CONVERTED = {
    "csr": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "dense": lambda values: values.toarray(),
    "int": lambda values: values.astype(np.int64),
    "uint16": lambda values: values.astype(np.uint16),
    "dense float64": lambda values: values.toarray().astype(np.float64),
}


def small(values=None, **kwargs):
    if values is None:
        values = sparse.csr_matrix(np.random.default_rng(0).poisson(0.7, (60, 30)).astype(np.float32))
    slide = ad.AnnData(values, **kwargs)
    slide.var_names = [f"g{i}" for i in range(slide.n_vars)]
    slide.obsm["spatial"] = np.random.default_rng(1).uniform(0, 10, (slide.n_obs, 2))
    return slide


def dense(values):
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def expected_variance(counts):
    totals = counts.sum(1, keepdims=True)
    return np.log1p(counts / np.where(totals > 0, totals, 1) * 1e4).var(0)


def test_weights_are_variances_of_log_expression():
    slide = small()
    assert stimg.pp.select_genes(slide, 10) is None
    weight = slide.var["stimg_weight"].to_numpy()
    variance = expected_variance(dense(slide.X))
    chosen = np.argsort(-variance)[:10]
    assert weight.dtype == np.float32
    assert set(np.flatnonzero(weight)) == set(chosen)
    np.testing.assert_allclose(weight[chosen], variance[chosen], rtol=1e-4)
    info = slide.uns["stimg"]["select_genes"]
    assert (info["method"], info["n_genes"], info["layer"], info["scale"], info["target_sum"]) == (
        "variance",
        10,
        "",
        "counts",
        1e4,
    )


@pytest.mark.parametrize("kind", CONVERTED)
def test_storage_does_not_matter_and_is_not_changed(kind):
    plain = small()
    stimg.pp.select_genes(plain, 10)
    values = CONVERTED[kind](plain.X.copy())
    slide = small(values)
    before = slide.X.copy()
    stimg.pp.select_genes(slide, 10)
    np.testing.assert_array_equal(slide.var["stimg_weight"], plain.var["stimg_weight"])
    assert type(slide.X) is type(before)
    assert slide.X.dtype == before.dtype
    np.testing.assert_array_equal(dense(slide.X), dense(before))
    if sparse.issparse(before):
        np.testing.assert_array_equal(slide.X.data, before.data)
        np.testing.assert_array_equal(slide.X.indices, before.indices)


def test_unsorted_and_repeated_entries_stay_as_they_are():
    values = sparse.csr_matrix((np.ones(4, np.float32), np.array([2, 0, 0, 1]), np.array([0, 3, 4])), shape=(2, 3))
    slide = small(values)
    before = slide.X.copy()
    stimg.pp.select_genes(slide, 3)
    np.testing.assert_array_equal(slide.X.data, before.data)
    np.testing.assert_array_equal(slide.X.indices, before.indices)
    np.testing.assert_array_equal(slide.X.indptr, before.indptr)
    assert slide.var["stimg_weight"].iloc[0] == pytest.approx(expected_variance(dense(before))[0], rel=1e-4)


def test_layer_and_log_scale():
    slide = small()
    plain = stimg.pp.select_genes(slide, 10, copy=True).var["stimg_weight"]
    counts = dense(slide.X)
    slide.layers["log"] = sparse.csr_matrix(np.log1p(counts / counts.sum(1, keepdims=True) * 1e4))
    stimg.pp.select_genes(slide, 10, layer="log", scale="log", key_added="w")
    np.testing.assert_allclose(slide.var["w"], plain, rtol=1e-4)
    assert slide.uns["stimg"]["select_genes"]["layer"] == "log"


def test_more_than_there_are():
    slide = small()
    stimg.pp.select_genes(slide, 1000)
    assert (slide.var["stimg_weight"] > 0).all()
    assert slide.uns["stimg"]["select_genes"]["n_genes"] == 30


def test_empty_spots_and_genes():
    values = dense(small().X)
    values[3] = 0
    values[:, 5] = 0
    slide = small(sparse.csr_matrix(values))
    stimg.pp.select_genes(slide, 30)
    weight = slide.var["stimg_weight"]
    assert np.isfinite(weight).all()
    assert weight.iloc[5] == 0
    np.testing.assert_allclose(weight, expected_variance(values), rtol=1e-4, atol=1e-6)


def test_list_of_genes():
    slide = small()
    stimg.pp.select_genes(slide, 1, genes=["g4", "g2", "g9"])
    weight = slide.var["stimg_weight"]
    assert list(slide.var_names[weight > 0]) == ["g2", "g4", "g9"]
    assert slide.uns["stimg"]["select_genes"]["method"] == "genes"
    assert slide.uns["stimg"]["select_genes"]["n_genes"] == 3


def moran(values, coordinates, k=6):
    """Moran's I with row-normalised weights of the k nearest."""
    centred = values - values.mean(0)
    gaps = np.linalg.norm(coordinates[:, None] - coordinates, axis=2)
    np.fill_diagonal(gaps, np.inf)
    lag = centred[np.argsort(gaps, axis=1)[:, :k]].mean(1)
    return (centred * lag).sum(0) / (centred**2).sum(0)


@pytest.fixture
def gradient():
    rng = np.random.default_rng(0)
    coordinates = rng.uniform(0, 10, (200, 2))
    rates = np.full((200, 12), 2.0)
    rates[:, :3] = 0.5 + coordinates[:, :1]
    slide = ad.AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obsm={"spatial": coordinates})
    slide.var_names = [f"g{i}" for i in range(12)]
    slide.obs["section"] = np.where(np.arange(200) < 90, "a", "b")
    return slide


def select_moran(slide, *args, **kwargs):
    return stimg.pp.select_genes(slide, *args, method="moran", **kwargs)


def test_moran_finds_genes_that_vary_in_space(gradient):
    del gradient.obs["section"]  # one section
    before = gradient.X.copy()
    select_moran(gradient, 6)
    weight = gradient.var["stimg_weight"].to_numpy()
    assert set(np.argsort(-weight)[:3]) == {0, 1, 2}
    counts = dense(before)
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    expected = np.maximum(moran(logged, gradient.obsm["spatial"]), 0)
    np.testing.assert_allclose(weight[weight > 0], expected[weight > 0], rtol=1e-3)
    np.testing.assert_array_equal(gradient.X.data, before.data)
    assert list(gradient.obsp) == []


def test_moran_keeps_libraries_apart(gradient):
    # The second section lies on top of the first: only neighbours of the same section count.
    alone = gradient[gradient.obs["section"] == "a"].copy()
    select_moran(alone, 6)
    stacked = ad.concat([alone, alone[::-1]], index_unique="-", label="copy")
    select_moran(stacked, 6, library_key="copy")
    np.testing.assert_allclose(stacked.var["stimg_weight"], alone.var["stimg_weight"], rtol=1e-3)


BAD = {
    "negative": (small(dense(small().X) - 1), {}, ValueError, "negative"),
    "NaN": (small(np.where(dense(small().X) > 3, np.nan, dense(small().X))), {}, ValueError, "NaN"),
    "log as counts": (small(np.log1p(dense(small().X))), {}, ValueError, "scale='log'"),
    "counts as log": (small(), {"scale": "log"}, ValueError, "scale='counts'"),
    "no logarithm": (small(dense(small().X) * 33.3), {"scale": "log"}, ValueError, "log1p"),
    "unknown layer": (small(), {"layer": "raw"}, KeyError, "raw.*Available"),
    "unknown scale": (small(), {"scale": "cpm"}, ValueError, "scale"),
    "unknown method": (small(), {"method": "hvg"}, ValueError, "method"),
    "unknown genes": (small(), {"genes": ["g1", "BRCA1"]}, KeyError, "1 of 2 .*BRCA1"),
    "one string": (small(), {"genes": "g1"}, TypeError, "list"),
    "no genes": (small(), {"genes": []}, ValueError, "genes"),
    "zero genes": (small(), {"n_genes": 0}, ValueError, "n_genes"),
    "half a gene": (small(), {"n_genes": 1.5}, ValueError, "n_genes"),
    "target of zero": (small(), {"target_sum": 0}, ValueError, "target_sum"),
    "nothing varies": (small(np.ones((9, 4), np.float32)), {}, ValueError, "vary"),
    "zeros": (small(np.zeros((9, 4), np.float32)), {}, ValueError, "`adata.X` holds zeros only"),
    "unknown column": (small(), {"gene_symbols": "name"}, KeyError, "gene_symbols"),
    "unknown library": (small(), {"method": "moran", "library_key": "s"}, KeyError, "library_key"),
    "unknown coordinates": (small(), {"method": "moran", "spatial_key": "xy"}, KeyError, "xy"),
    "too few for moran": (small()[:5].copy(), {"method": "moran"}, ValueError, "more than 6"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    slide, kwargs, error, match = BAD[name]
    before = slide.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=SyntaxWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        with pytest.raises(error, match=match):
            stimg.pp.select_genes(slide, **kwargs)
    np.testing.assert_array_equal(dense(slide.X), dense(before.X))
    assert list(slide.var.columns) == []
    assert "stimg" not in slide.uns


def test_duplicated_gene_names():
    slide = small()
    slide.var_names = ["g0", *slide.var_names[:-1]]
    with pytest.raises(ValueError, match="var_names_make_unique"):
        stimg.pp.select_genes(slide)
    assert list(slide.var.columns) == []


def test_copy_and_view():
    slide = small()
    assert "stimg_weight" in stimg.pp.select_genes(slide, copy=True).var
    view = slide[:, :20]
    stimg.pp.select_genes(view, 5)
    assert (view.var["stimg_weight"] > 0).sum() == 5
    assert "stimg_weight" not in slide.var


def test_memory_is_that_of_the_nonzeros():
    values = sparse.random_array((4000, 5000), density=0.002, rng=np.random.default_rng(0), format="csr")
    values.data = np.ceil(values.data * 5).astype(np.float32)
    slide = small(sparse.csr_matrix(values.astype(np.float32)))
    tracemalloc.start()
    stimg.pp.select_genes(slide, 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * 4 * slide.n_obs * slide.n_vars
