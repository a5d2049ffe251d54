from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import stats

import stimg


@pytest.fixture
def slide():
    return stimg.datasets.synthetic(n_obs=300, n_genes=40, n_domains=3)


def logged(slide):
    counts = np.asarray(slide.X.toarray(), dtype=float)
    return np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


def test_table_has_what_scipy_finds_in_log_normalised_values(slide):
    slide.X[:, 3] = 0  # a gene that nothing expresses
    counts = slide.X.copy()
    found = stimg.tl.rank_genes(slide, "domain", n_genes=None)
    assert (slide.X != counts).nnz == 0
    values, inside = logged(slide), (slide.obs["domain"] == "layer2").to_numpy()
    ours = found[found["domain"] == "layer2"].set_index("gene").loc[slide.var_names]
    p_values = []
    for column in values.T:
        first, second = column[inside], column[~inside]
        p_values.append(stats.mannwhitneyu(first, second, use_continuity=False, method="asymptotic").pvalue)
    p_values = np.nan_to_num(p_values, nan=1)
    np.testing.assert_allclose(ours["p_adjusted"], stats.false_discovery_control(p_values), rtol=0.02)
    means = [np.expm1(values[rows].mean(0)) + 1e-9 for rows in (inside, ~inside)]
    np.testing.assert_allclose(ours["log2_fold_change"], np.log2(means[0] / means[1]), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours["share_inside"], (values[inside] > 0).mean(0))
    np.testing.assert_allclose(ours["share_outside"], (values[~inside] > 0).mean(0))
    for _, rows in found.groupby("domain", observed=True):
        assert (np.diff(rows["score"]) <= 0).all()
    assert np.isfinite(found.select_dtypes("number")).all(axis=None)


def test_scanpy_reads_the_result_also_from_a_file(slide, tmp_path):
    slide.obs["domain"] = slide.obs["domain"].cat.rename_categories({"layer2": "L2/3"})
    best = stimg.tl.rank_genes(slide, "domain", n_genes=4)
    slide.write_h5ad(tmp_path / "slide.h5ad")
    for one in (slide, anndata.read_h5ad(tmp_path / "slide.h5ad")):
        frame = sc.get.rank_genes_groups_df(one, None, key="stimg_rank_genes")
        assert frame["names"].tolist() == best["gene"].tolist()
        assert frame["group"].astype(str).tolist() == best["domain"].astype(str).tolist()
        record = one.uns["stimg"]["rank_genes"]
        assert record["key"] == "domain"
        assert record["n_obs"].tolist() == slide.obs["domain"].value_counts(sort=False).tolist()
    assert len(best) == 12
    assert sc.pl.rank_genes_groups(slide, key="stimg_rank_genes", show=False)


def test_layer_and_scale_are_those_of_select_genes(slide):
    right = stimg.tl.rank_genes(slide, "domain")
    slide.layers["counts"] = slide.X.copy()
    slide.X = np.random.default_rng(0).normal(size=slide.shape)
    stimg.pp.select_genes(slide, 20, layer="counts")
    pd.testing.assert_frame_equal(stimg.tl.rank_genes(slide, "domain"), right)
    counts = slide.layers["counts"].toarray()
    slide.layers["log"] = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    found = stimg.tl.rank_genes(slide, "domain", layer="log", scale="log")
    pd.testing.assert_frame_equal(found, right, rtol=0.02, atol=2e-3)
    assert slide.uns["stimg"]["rank_genes"]["layer"] == "log"
    with pytest.raises(ValueError, match="negative"):
        stimg.tl.rank_genes(anndata.AnnData(slide.X, obs=slide.obs), "domain")


def test_observations_without_a_label_are_left_out(slide):
    labels = slide.obs["domain"].astype(object)
    labels[:40], labels[40:60] = np.nan, "unknown"
    slide.obs["mine"] = labels
    part = slide[60:].copy()
    found = stimg.tl.rank_genes(slide, "mine")
    pd.testing.assert_frame_equal(found, stimg.tl.rank_genes(part, "domain"))
    assert slide.uns["stimg"]["rank_genes"]["n_obs"].sum() == 240


def test_integers_and_categories_that_are_empty(slide):
    slide.obs["number"] = slide.obs["domain"].cat.codes.astype(int) * 10
    slide.obs["empty"] = slide.obs["domain"].cat.add_categories("layer9")
    assert list(stimg.tl.rank_genes(slide, "number")["domain"].cat.categories) == ["0", "10", "20"]
    assert list(stimg.tl.rank_genes(slide, "empty")["domain"].cat.categories) == ["layer1", "layer2", "layer3"]


def test_a_domain_of_one_observation_is_named_and_not_ranked(slide):
    slide.obs["mine"] = slide.obs["domain"].astype(str)
    slide.obs.loc[slide.obs_names[0], "mine"] = "lone"
    with pytest.warns(UserWarning, match="'lone'"):
        found = stimg.tl.rank_genes(slide, "mine")
    assert list(found["domain"].cat.categories) == ["layer1", "layer2", "layer3"]


def test_ids_get_symbols(slide):
    slide.var["name"] = [f"Name{i}" for i in range(slide.n_vars)]
    stimg.pp.select_genes(slide, 20, gene_symbols="name")
    found = stimg.tl.rank_genes(slide, "domain", n_genes=3)
    assert found["symbol"].tolist() == slide.var.loc[found["gene"], "name"].tolist()


@pytest.mark.parametrize("kind", ["csc", "dense", "backed", "dask"])
def test_expression_may_be_stored_in_any_way(slide, tmp_path, kind):
    right = stimg.tl.rank_genes(slide, "domain", method="t-test")
    if kind == "csc":
        slide.X = slide.X.tocsc()
    elif kind == "dense":
        slide.X = slide.X.toarray()
    elif kind == "dask":
        array = pytest.importorskip("dask.array")
        slide.X = array.from_array(slide.X.toarray(), chunks=(70, -1))
    else:
        slide.write_h5ad(tmp_path / "slide.h5ad")
        slide = anndata.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    pd.testing.assert_frame_equal(stimg.tl.rank_genes(slide, "domain", method="t-test"), right)


def test_of_very_many_observations_some_are_ranked(slide, monkeypatch):
    monkeypatch.setattr("stimg.tl._rank_genes.MOST_RANKED", 150)
    monkeypatch.setattr("stimg.tl._rank_genes.FEWEST_OF_A_DOMAIN", 10)
    whole = slide.obs["domain"].value_counts()
    best = stimg.tl.rank_genes(slide, "domain", n_genes=1)
    record = slide.uns["stimg"]["rank_genes"]
    assert 148 <= record["n_ranked"] <= 152
    assert record["n_obs"].sum() == whole.sum()
    monkeypatch.undo()
    every = stimg.tl.rank_genes(slide, "domain", n_genes=5)
    for row in best.itertuples():
        assert row.gene in every["gene"][every["domain"] == row.domain].tolist()


def test_rows_are_spaced_and_small_domains_kept():
    from stimg._cluster._labels import spaced_rows

    codes = np.r_[np.zeros(1000, int), np.ones(5, int), -np.ones(100, int)]
    rows = spaced_rows(codes, 100, 5)
    assert (np.diff(rows) > 0).all()
    assert np.bincount(codes[rows]).tolist() == [100, 5]
    np.testing.assert_array_equal(spaced_rows(codes, 2000, 5), np.arange(1005))


def test_spatialdata_and_views(slide):
    import spatialdata

    whole = spatialdata.SpatialData(tables={"spots": slide})
    stimg.tl.rank_genes(whole, "domain", table_key="spots")
    assert "stimg_rank_genes" in whole["spots"].uns
    view = slide[:200]
    stimg.tl.rank_genes(view, "domain", key_added="again")
    assert "again" in view.uns
    assert "again" not in slide.uns


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "none"}, KeyError, r"stimg\.tl\.domains"),
        ({"method": "logreg"}, ValueError, "`method`"),
        ({"n_genes": 0}, ValueError, "`n_genes`"),
        ({"layer": "none"}, KeyError, "layer"),
        ({"scale": "log"}, ValueError, "scale='counts'"),
        ({"key_added": "spatial"}, ValueError, "something else"),
        ({"key_added": "stimg"}, ValueError, "something else"),
        ({"key_added": "embed"}, ValueError, "record of a step"),
        ({"key": "share"}, ValueError, "found float64"),
        ({"key": "one"}, ValueError, "two domains"),
        ({"key": "empty"}, ValueError, "only missing values"),
        ({"key": "alike"}, ValueError, "read alike"),
        ({"key": "lists"}, ValueError, "unhashable"),
        ({"key": "names"}, ValueError, "found 0 among"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_slide_alone(slide, arguments, error, message):
    slide.obs["share"] = np.linspace(0, 1, slide.n_obs)
    slide.obs["one"], slide.obs["empty"] = "all", None
    slide.obs["alike"] = pd.Categorical([1, "1"] * (slide.n_obs // 2))
    slide.obs["lists"], slide.obs["names"] = [[1]] * slide.n_obs, slide.obs_names
    before = repr(slide.uns)
    with pytest.raises(error, match=message):
        stimg.tl.rank_genes(slide, **({"key": "domain"} | arguments))
    assert repr(slide.uns) == before


@pytest.mark.real
def test_layers_of_cortex_have_their_known_genes(real_data_dir):
    slide = anndata.read_h5ad(real_data_dir / "dlpfc" / "151673.h5ad")
    best = stimg.tl.rank_genes(slide, "domain", n_genes=10, method="t-test")
    for domain, gene in (("L5", "PCP4"), ("WM", "MBP"), ("L3", "HOPX")):
        assert gene in best["gene"][best["domain"] == domain].tolist()
