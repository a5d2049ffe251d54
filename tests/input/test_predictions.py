"""Tables of predicted genes: written, saved, joined, and found again by their key."""

from __future__ import annotations

import tracemalloc

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import stimg
from stimg._input import _predictions
from stimg._input._predictions import read_prediction, write_prediction


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=60, n_genes=12)
    values = np.random.default_rng(0).random((60, 2)).astype(np.float32)
    write_prediction(slide, "predict_expression", "found", values, ["Gene3", "Gene1"], {"unit": "log"})
    return slide


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_a_saved_table_is_the_table(slide, tmp_path, form):
    getattr(slide, f"write_{form}")(tmp_path / "slide")
    back = getattr(ad, f"read_{form}")(tmp_path / "slide")
    pd.testing.assert_frame_equal(back.obsm["found"], slide.obsm["found"])
    found = read_prediction(back, "predict_expression", "found")
    np.testing.assert_array_equal(
        found.read(["Gene1"], np.array([4, 2]))[:, 0], slide.obsm["found"]["Gene1"].iloc[[4, 2]]
    )
    assert found.record["n_genes"] == 2


def test_parts_of_a_slide_keep_their_rows_and_scanpy_reads_them(slide):
    part = slide[10:20, :5].copy()
    pd.testing.assert_frame_equal(part.obsm["found"], slide.obsm["found"].iloc[10:20])
    column = sc.get.obs_df(part, obsm_keys=[("found", "Gene3")])
    np.testing.assert_array_equal(column.iloc[:, 0], slide.obsm["found"]["Gene3"].iloc[10:20])


@pytest.mark.parametrize(("join", "genes"), [("inner", ["Gene1"]), ("outer", ["Gene3", "Gene1", "Gene7"])])
def test_joined_slides_are_aligned_by_gene(slide, join, genes):
    other = slide.copy()
    values = np.full((60, 2), [7.0, 1.0], dtype=np.float32)
    write_prediction(other, "predict_expression", "found", values, ["Gene7", "Gene1"], {})
    both = ad.concat({"a": slide, "b": other}, index_unique="-", join=join)
    assert sorted(both.obsm["found"].columns) == sorted(genes)
    np.testing.assert_array_equal(both.obsm["found"]["Gene1"].iloc[60:], 1)
    np.testing.assert_array_equal(both.obsm["found"]["Gene1"].iloc[:60], slide.obsm["found"]["Gene1"])


def test_what_is_missing_is_named(slide):
    with pytest.raises(KeyError, match=r"'absent'.*'found'.*stimg\.tl\.retrieve_expression"):
        read_prediction(slide, "retrieve_expression", "absent")
    with pytest.raises(KeyError, match=r"reconstruct"):  # another function wrote it
        read_prediction(slide, "reconstruct", "found")
    with pytest.raises(KeyError, match=r"Gene2.*Gene3"):
        read_prediction(slide, "predict_expression", "found").read(["Gene1", "Gene2"])


def test_a_table_too_wide_for_files_is_told(slide, monkeypatch):
    monkeypatch.setattr(_predictions, "MOST_COLUMNS", 3)
    with pytest.warns(UserWarning, match=r"`adata.obsm\['wide'\]` has 4 genes"):
        write_prediction(slide, "reconstruct", "wide", np.zeros((60, 4), np.float32), list("abcd"), {})


def test_a_lazy_layer_and_a_table_replace_each_other_under_one_key(slide):
    import dask.array as da

    layer = da.ones(slide.shape, dtype=np.float32)
    slide.layers["found"] = np.zeros(slide.shape)  # the user's own, under the same name
    write_prediction(slide, "reconstruct", "both", layer, slide.var_names, {})
    assert read_prediction(slide, "reconstruct", "both").read([slide.var_names[5]], slice(3)).tolist() == [[1.0]] * 3
    write_prediction(slide, "reconstruct", "both", np.full((60, 1), 2, np.float32), [slide.var_names[5]], {})
    assert "both" not in slide.layers
    assert read_prediction(slide, "reconstruct", "both").read([slide.var_names[5]], slice(3)).tolist() == [[2.0]] * 3
    write_prediction(slide, "reconstruct", "both", layer, slide.var_names, {})
    assert "both" not in slide.obsm
    assert set(slide.layers) == {"found", "both"}


def test_few_genes_of_many_take_little_memory():
    """A layer of 2,000 x 20,000 would be 160 MB."""
    rng = np.random.default_rng(0)
    counts = sparse.random_array((2000, 20_000), density=0.001, rng=rng, dtype=np.float32, format="csr")
    counts.data[:] = 1
    slide = ad.AnnData(counts)
    slide.obsm["X_stimg_image"] = slide.obsm["X_stimg_gene"] = rng.random((2000, 4)).astype(np.float32)
    tracemalloc.start()
    stimg.tl.retrieve_expression(slide, slide, list(slide.var_names[:3]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert slide.obsm["stimg_retrieved"].shape == (2000, 3)
    assert peak < 20e6


def test_second_runs_keep_the_first_and_each_is_drawn(make_slide, trained):
    slide = make_slide()
    genes = [gene for gene in trained.genes if gene in slide.var_names][:2]
    hidden = np.arange(slide.n_obs) < 40
    stimg.tl.reconstruct(slide, trained, genes=genes)
    first = slide.obsm["stimg"].copy()
    stimg.tl.reconstruct(slide, trained, genes=genes[::-1], hidden=hidden, key_added="partly")
    pd.testing.assert_frame_equal(slide.obsm["stimg"], first)
    assert not np.allclose(slide.obsm["partly"][genes], first)
    assert [slide.uns["stimg"][key]["n_hidden"] for key in ("stimg", "partly")] == [0, 40]
    for key in ("stimg", "partly"):
        drawn = stimg.pl.reconstruction(slide, genes[1], key=key)[0, 1].collections[0].get_array()
        np.testing.assert_allclose(drawn, slide.obsm[key][genes[1]])
    plt.close("all")


def test_names_with_a_slash_are_told_before_they_are_saved(slide, tmp_path):
    with pytest.warns(UserWarning, match=r"slash in their names \(\['CCL3/L1'\]\)") as caught:
        write_prediction(slide, "reconstruct", "table", np.ones((slide.n_obs, 2)), ["CCL3/L1", "CCL5"], {})
    exec(str(caught[0].message).split("rename them: `")[1].split("`")[0], {"adata": slide})
    assert list(slide.obsm["table"].columns) == ["CCL3_L1", "CCL5"]
