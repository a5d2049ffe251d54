from __future__ import annotations

import numpy as np
import pytest

import stimg


def test_the_table_is_log_expression_of_the_known_genes(make_slide, trained):
    slide = make_slide()
    stimg.tl.reconstruct(slide, trained)
    found = slide.obsm["stimg"]
    known = np.isin(slide.var_names, trained.genes)
    assert 0 < known.sum() < slide.n_vars
    assert list(found.columns) == list(slide.var_names[known])
    assert (found.dtypes == np.float32).all()
    assert (found >= 0).all(axis=None)
    counts = slide.X.toarray()
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    assert np.corrcoef(found.mean(0), logged[:, known].mean(0))[0, 1] > 0.9


def test_hidden_observations_do_not_leak(make_slide, trained):
    slide = make_slide()
    hidden = stimg.metrics.hide_regions(slide.obsm["lattice"], 4, n_regions=2)
    slide.obs["hidden"] = hidden
    stimg.tl.reconstruct(slide, trained, hidden="hidden")
    other = make_slide()
    counts = other.X.toarray()
    counts[hidden] = 50
    other.X = counts
    stimg.tl.reconstruct(other, trained, hidden=hidden)
    np.testing.assert_allclose(other.obsm["stimg"], slide.obsm["stimg"], rtol=1e-5, atol=1e-5)
    assert slide.uns["stimg"]["reconstruct"]["n_hidden"] == hidden.sum()


def test_bad_masks_are_refused(make_slide, trained):
    slide = make_slide()
    with pytest.raises(KeyError, match="`hidden`"):
        stimg.tl.reconstruct(slide, trained, hidden="none")
    with pytest.raises(ValueError, match="as bool"):
        stimg.tl.reconstruct(slide, trained, hidden=np.zeros(3, dtype=bool))
    with pytest.raises(ValueError, match="hides every site"):
        stimg.tl.reconstruct(slide, trained, hidden=np.ones(slide.n_obs, dtype=bool))
    assert "stimg" not in slide.obsm
