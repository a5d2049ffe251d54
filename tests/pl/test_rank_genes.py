from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import stimg


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=300, n_genes=40, n_domains=3)
    slide.obs.loc[slide.obs_names[:9], "domain"] = np.nan
    stimg.tl.rank_genes(slide, "domain")
    return slide


def test_dots_are_of_the_best_genes_on_the_log_scale(slide):
    ax = stimg.pl.rank_genes(slide, n_genes=2)
    best = stimg.tl.rank_genes(slide, "domain", n_genes=2)
    assert [label.get_text() for label in ax.get_xticklabels()] == best["gene"].tolist()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer1", "layer2", "layer3"]
    assert ax.get_ylabel() == "domain"
    assert any("Best genes" in other.get_title() for other in ax.figure.axes)
    counts = slide.X.toarray()
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)[:, slide.var_names.get_indexer(best["gene"])]
    means = np.stack([values[slide.obs["domain"] == name].mean(0) for name in ("layer1", "layer2", "layer3")])
    scaled = (means - means.min(0)) / (means - means.min(0)).max(0)
    (dots,) = ax.collections
    norm, cmap = plt.Normalize(0, 1), plt.get_cmap("Reds")
    np.testing.assert_allclose(dots.get_facecolors(), cmap(norm(scaled.ravel())), atol=0.01)


def test_axes_title_and_symbols(slide):
    slide.var["name"] = [f"Name{i}" for i in range(slide.n_vars)]
    stimg.pp.select_genes(slide, 20, gene_symbols="name")
    _, (left, _) = plt.subplots(1, 2, figsize=(16, 4))
    ax = stimg.pl.rank_genes(slide, n_genes=1, ax=left, title="mine")
    assert ax.figure is left.figure
    assert all(label.get_text().startswith("Name") for label in ax.get_xticklabels())
    assert "mine" in [other.get_title() for other in ax.figure.axes]


def test_a_subset_is_drawn_and_changed_labels_are_refused(slide):
    stimg.pl.rank_genes(slide[::2], n_genes=1)
    slide.obs["domain"] = np.roll(slide.obs["domain"].astype(str), 5)
    slide.obs.loc[slide.obs_names[:50], "domain"] = "layer1"
    with pytest.raises(ValueError, match="have changed"):
        stimg.pl.rank_genes(slide)


def test_what_is_missing_is_named(slide):
    with pytest.raises(ValueError, match="`n_genes`"):
        stimg.pl.rank_genes(slide, n_genes=0)
    with pytest.raises(KeyError, match="'none' was not found"):
        stimg.pl.rank_genes(slide, "none")
    gene = slide.uns["stimg_rank_genes"]["names"]["layer1"][0]
    with pytest.raises(KeyError, match=gene):
        stimg.pl.rank_genes(slide[:, slide.var_names != gene])
    slide.uns["stimg"] = {}
    with pytest.raises(KeyError, match="no record"):
        stimg.pl.rank_genes(slide)
