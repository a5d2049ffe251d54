"""Results are finite, or refused before anything is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

import stimg


def untouched(slide, before):
    assert (list(slide.obsm), list(slide.layers), list(slide.uns["stimg"])) == before


@pytest.fixture
def slide(make_slide):
    return make_slide()


@pytest.fixture
def before(slide):
    return list(slide.obsm), list(slide.layers), list(slide.uns["stimg"])


def test_windows_that_leave_sites_out_are_refused(slide, before, trained):
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(ValueError, match="`stride` to be at most 8"):
            step(slide, trained, stride=12)
    untouched(slide, before)


def test_a_slide_without_expression_is_refused(slide, before, trained):
    slide.X = sparse.csr_matrix(slide.shape, dtype=np.float32)
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(ValueError, match="`adata.X` holds zeros only"):
            step(slide, trained)
    slide.X = sparse.csr_matrix(np.where(slide.var_names.isin(trained.genes), 0, 1) * np.ones((slide.n_obs, 1)))
    for step in (stimg.tl.embed, stimg.tl.reconstruct):
        with pytest.raises(ValueError, match="of the 40 genes that the model knows, 300 of 300 sites have none"):
            step(slide, trained)
    untouched(slide, before)


def test_counts_beyond_32_bits_are_refused(slide, before, trained):
    slide.X = slide.X.astype(np.float64)
    slide.X.data[0] = 1e39
    with pytest.raises(ValueError, match=r"1e\+39, too large for float32"):
        stimg.tl.embed(slide, trained)
    untouched(slide, before)


@pytest.mark.parametrize("weight", [np.inf, -1.0, np.nan, "much"])
def test_genes_without_usable_weights_are_refused(slide, weight):
    slide.var["stimg_weight"] = weight
    with pytest.raises(ValueError, match=r"weights of genes in `adata.var\['stimg_weight'\]` of 'slide0'"):
        stimg.pp.to_patches(slide, size=8, n_channels=16)


def test_totals_beyond_32_bits_are_kept(slide, trained):
    stimg.tl.embed(slide, trained)
    slide.X = slide.X.astype(np.float64) * 1e35
    stimg.tl.embed(slide, trained, key_added="huge")
    np.testing.assert_allclose(slide.obsm["huge"], slide.obsm["X_stimg"], atol=1e-3)


def test_weights_that_are_not_finite_are_refused(slide, before, make_slide, trained):
    other = stimg.models.Model(trained.network.without_genes(), trained.genes, trained.card)
    broken = type(trained.network)(trained.config, len(trained.genes))
    broken.load_state_dict(trained.network.state_dict())
    with torch.no_grad():
        broken.decoder.norm.weight[0] = torch.nan
    other.network = broken.eval()
    with pytest.raises(ValueError, match=r"embedding came out with NaN or infinite values in 300 of 300 rows"):
        stimg.tl.embed(slide, other)
    with pytest.raises(ValueError, match="reconstruction came out with NaN"):
        stimg.tl.reconstruct(slide, other)
    untouched(slide, before)


@pytest.mark.parametrize("method", ["kmeans", "leiden"])
def test_a_covariance_is_the_mixtures(slide, trained, method):
    stimg.tl.embed(slide, trained)
    with pytest.raises(ValueError, match=f"no `covariance` with `method='{method}'`"):
        stimg.tl.domains(slide, 3, method=method, covariance="tied")
    stimg.tl.domains(slide, 3, method=method)
    assert slide.uns["stimg"]["domains"]["covariance"] == ""
