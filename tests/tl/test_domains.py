from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

import stimg


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=400, n_genes=60, n_domains=4)
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 4, (4, 20))
    noise = rng.normal(size=(slide.n_obs, 20))
    slide.obsm["X_stimg"] = (centres[slide.obs["domain"].cat.codes] + noise).astype(np.float32)
    return slide


@pytest.mark.parametrize("method", ["mixture", "kmeans", "leiden"])
def test_methods_find_plain_domains_and_write_what_they_say(slide, method):
    stimg.tl.domains(slide, 4, method=method)
    labels = slide.obs["stimg_domain"]
    assert adjusted_rand_score(slide.obs["domain"], labels) > 0.95
    assert list(labels.cat.categories) == ["1", "2", "3", "4"]
    sizes = labels.value_counts().loc[["1", "2", "3", "4"]]
    assert (np.diff(sizes) <= 0).all()
    confidence = slide.obs["stimg_domain_confidence"]
    assert confidence.dtype == np.float32
    assert confidence.between(0, 1).all()
    assert len(slide.uns["stimg_domain_colors"]) == 4
    assert slide.uns["stimg"]["domains"]["method"] == method


@pytest.mark.parametrize("n_domains", [1, 2, 7])
@pytest.mark.parametrize("method", ["mixture", "kmeans", "leiden"])
def test_the_number_is_exact(slide, method, n_domains):
    stimg.tl.domains(slide, n_domains, method=method)
    assert slide.obs["stimg_domain"].nunique() == n_domains


def test_full_covariance_and_no_reduction(slide):
    stimg.tl.domains(slide, 4, covariance="full", n_components=5)
    assert slide.obs["stimg_domain"].nunique() == 4
    stimg.tl.domains(slide, 4, n_components=0)
    assert adjusted_rand_score(slide.obs["domain"], slide.obs["stimg_domain"]) > 0.95


def test_auto_takes_the_stable_number(slide):
    stimg.tl.domains(slide, "auto", candidates=(3, 4, 6))
    assert slide.obs["stimg_domain"].nunique() == 4


def test_same_seed_same_domains(slide):
    stimg.tl.domains(slide, 6, rng=1)
    first = slide.obs["stimg_domain"].copy()
    stimg.tl.domains(slide, 6, rng=1)
    assert (slide.obs["stimg_domain"] == first).all()


def test_slides_are_clustered_jointly(slide):
    other = slide[::2].copy()
    stimg.tl.domains([slide, other], 4)
    assert (slide.obs["stimg_domain"][::2].to_numpy() == other.obs["stimg_domain"].to_numpy()).all()
    copies = stimg.tl.domains([slide, other], 3, key_added="joint", copy=True)
    assert [c.obs["joint"].notna().all() for c in copies] == [True, True]
    assert "joint" not in slide.obs


def test_refinement_removes_lone_spots_and_stays_in_its_library(slide):
    slide.obsm["X_stimg"] = slide.obsm["X_stimg"] + np.random.default_rng(1).normal(0, 4, (400, 20))
    stimg.tl.domains(slide, 4)
    rough = stimg.metrics.domain_scores(
        slide.obs["domain"], slide.obs["stimg_domain"], coordinates=slide.obsm["spatial"]
    )
    stimg.tl.domains(slide, 4, refine=True)
    smooth = stimg.metrics.domain_scores(
        slide.obs["domain"], slide.obs["stimg_domain"], coordinates=slide.obsm["spatial"]
    )
    assert smooth["pas"] < rough["pas"]
    slide.obs["section"] = np.where(np.arange(400) < 200, "a", "b")
    stimg.tl.domains(slide, 4, refine=6, library_key="section")
    assert slide.obs["stimg_domain"].nunique() == 4


def test_bad_input_is_refused_and_leaves_the_slide_alone(slide):
    before = (list(slide.obs), list(slide.uns))
    for arguments, error, message in (
        ({"n_domains": 0}, ValueError, "`n_domains`"),
        ({"n_domains": True}, ValueError, "`n_domains`"),
        ({"n_domains": 401}, ValueError, "400 observations"),
        ({"n_domains": 3, "method": "louvain"}, ValueError, "`method`"),
        ({"n_domains": 3, "covariance": "round"}, ValueError, "`covariance`"),
        ({"n_domains": 3, "use_rep": "X_none"}, KeyError, "stimg.tl.embed"),
        ({"n_domains": 3, "library_key": "none"}, KeyError, "library_key"),
        ({"n_domains": 3, "refine": True, "spatial_key": "none"}, KeyError, "spatial_key"),
    ):
        with pytest.raises(error, match=message):
            stimg.tl.domains(slide, **arguments)
    slide.obsm["X_stimg"][0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        stimg.tl.domains(slide, 3)
    with pytest.raises(ValueError, match="empty list"):
        stimg.tl.domains([], 3)
    assert (list(slide.obs), list(slide.uns)) == before


def test_more_domains_than_distinct_rows_is_an_error(slide):
    slide.obsm["X_stimg"] = np.ones((400, 5), dtype=np.float32)
    with pytest.raises(RuntimeError, match="n_domains"):
        stimg.tl.domains(slide, 3, method="kmeans")


def test_scanpy_takes_over(slide):
    import scanpy as sc

    sc.pp.neighbors(slide, use_rep="X_stimg")
    stimg.tl.domains(slide, 4)
    assert "neighbors" in slide.uns
