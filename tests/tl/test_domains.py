from __future__ import annotations

import anndata
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
        ({"n_domains": 401}, ValueError, r"observations \(400\)"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"refine": -3}, "`refine`"),
        ({"refine": 2.5}, "`refine`"),
        ({"n_components": -1}, "`n_components`"),
        ({"n_domains": 2.0}, "`n_domains`"),
        ({"n_domains": "many"}, "`n_domains`"),
        ({"n_domains": "auto", "candidates": ()}, "`candidates`"),
        ({"n_domains": "auto", "candidates": (1, 2, 3)}, "`candidates`"),
        ({"n_domains": "auto", "candidates": (3, 401)}, r"`candidates` to be at most .* \(400\)"),
    ],
)
def test_bad_numbers_are_refused_before_anything_is_written(slide, arguments, message):
    before = (list(slide.obs), list(slide.uns))
    with pytest.raises(ValueError, match=message):
        stimg.tl.domains(slide, **({"n_domains": 3} | arguments))
    assert (list(slide.obs), list(slide.uns)) == before


def test_slides_that_do_not_fit_together_are_refused(slide):
    other = slide.copy()
    other.obsm["X_stimg"] = other.obsm["X_stimg"][:, :10]
    with pytest.raises(ValueError, match=r"found \[10, 20\]"):
        stimg.tl.domains([slide, other], 3)
    with pytest.raises(ValueError, match="twice"):
        stimg.tl.domains([slide, slide], 3)
    slide.obsm["X_stimg"] = np.full((slide.n_obs, 2), "a")
    with pytest.raises(ValueError, match="Expected numbers"):
        stimg.tl.domains(slide, 3)
    assert "stimg_domain" not in slide.obs
    assert "stimg_domain" not in other.obs


def test_auto_leaves_out_what_cannot_be_reached_with_a_warning(slide):
    slide.obsm["X_stimg"] = np.eye(4)[slide.obs["domain"].cat.codes]
    with pytest.warns(UserWarning, match=r"`candidates` \[6, 8\]"):
        stimg.tl.domains(slide, "auto", method="kmeans", candidates=(3, 4, 6, 8))
    record = slide.uns["stimg"]["domains"]
    assert record["n_domains"] == 4
    assert record["stability"]["candidates"].tolist() == [3, 4]
    assert record["stability"]["mean"][1] == pytest.approx(1)
    with pytest.raises(RuntimeError, match="None of `candidates`"):
        stimg.tl.domains(slide, "auto", method="kmeans", candidates=(6, 8))


def test_leiden_reaches_many_domains_and_says_what_it_tried_where_it_cannot(slide):
    stimg.tl.domains(slide, 60, method="leiden")
    assert slide.obs["stimg_domain"].nunique() == 60
    assert len(set(slide.uns["stimg_domain_colors"])) == 60
    far = slide[:100].copy()
    far.obsm["X_stimg"] = np.repeat([[0.0], [1e3], [2e3], [3e3]], 25, axis=0)
    far.obs["section"] = np.repeat(list("abcd"), 25)
    with pytest.raises(RuntimeError, match=r"`n_domains`=2 in \d+ partitions.*nearest numbers reached: \[4\]"):
        stimg.tl.domains(far, 2, method="leiden", library_key="section")


@pytest.mark.parametrize("method", ["mixture", "kmeans", "leiden"])
def test_one_observation_is_one_domain(slide, method):
    single = slide[:1].copy()
    stimg.tl.domains(single, 1, method=method, refine=True)
    assert list(single.obs["stimg_domain"]) == ["1"]
    assert single.obs["stimg_domain_confidence"].item() == 1


def test_equally_large_domains_are_named_in_row_order(slide):
    slide = slide[:40].copy()
    slide.obsm["X_stimg"] = np.repeat(np.eye(4) * 10, 10, axis=0) + np.random.default_rng(0).normal(0, 0.1, (40, 4))
    for seed in range(3):
        stimg.tl.domains(slide, 4, method="kmeans", rng=seed)
        assert list(slide.obs["stimg_domain"][::10]) == ["1", "2", "3", "4"]


def test_refinement_takes_the_majority_within_a_section():
    from stimg._cluster._methods import refine_labels

    line = np.stack([np.arange(6.0), np.zeros(6)], axis=1)
    labels = np.array([0, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(refine_labels(labels, line, np.zeros(6, int), 2), 0)
    # a second section at the same places with other labels: each is refined as if it were alone
    both = np.r_[labels, 1 - labels]
    sections = np.repeat([0, 1], 6)
    refined = refine_labels(both, np.r_[line, line], sections, 2)
    np.testing.assert_array_equal(refined, np.repeat([0, 1], 6))


def test_refinement_that_removes_a_domain_is_an_error(slide):
    slide.obsm["X_stimg"] = np.zeros((slide.n_obs, 2))
    slide.obsm["X_stimg"][200] = 100
    before = list(slide.obs)
    with pytest.raises(RuntimeError, match="Refinement left 1 of 2"):
        stimg.tl.domains(slide, 2, method="kmeans", refine=True)
    assert list(slide.obs) == before


def test_record_and_labels_survive_h5ad(slide, tmp_path):
    import anndata

    other = slide.copy()
    stimg.tl.domains([slide, other], "auto", candidates=(3, 4), method="kmeans", refine=6)
    record = slide.uns["stimg"]["domains"]
    assert record is not other.uns["stimg"]["domains"]
    slide.write_h5ad(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert set(back.uns["stimg"]["domains"]) == set(record)
    assert back.uns["stimg"]["domains"]["n_slides"] == 2
    assert (back.obs["stimg_domain"] == slide.obs["stimg_domain"]).all()


def test_a_view_and_spatialdata_are_taken(slide):
    import spatialdata

    view = slide[:200]
    stimg.tl.domains(view, 3)
    assert view.obs["stimg_domain"].nunique() == 3
    assert "stimg_domain" not in slide.obs
    whole = spatialdata.SpatialData(tables={"spots": slide})
    stimg.tl.domains(whole, 4, table_key="spots")
    assert whole["spots"].obs["stimg_domain"].nunique() == 4
    with pytest.raises(KeyError, match="table_key"):
        stimg.tl.domains(whole, 4, table_key="none")


def test_more_domains_than_distinct_rows_is_an_error(slide):
    slide.obsm["X_stimg"] = np.ones((400, 5), dtype=np.float32)
    with pytest.raises(RuntimeError, match="n_domains"):
        stimg.tl.domains(slide, 3, method="kmeans")


def test_scanpy_takes_over(slide):
    import scanpy as sc

    sc.pp.neighbors(slide, use_rep="X_stimg")
    stimg.tl.domains(slide, 4)
    assert "neighbors" in slide.uns


def test_the_joined_embedding_is_the_default_for_one_slide_alone(slide):
    slide.obsm["X_stimg_slide"] = np.ascontiguousarray(slide.obsm["X_stimg"][:, ::-1])
    stimg.tl.domains(slide, 3)
    assert slide.uns["stimg"]["domains"]["use_rep"] == "X_stimg_slide"
    stimg.tl.domains([slide, slide.copy()], 3)
    assert slide.uns["stimg"]["domains"]["use_rep"] == "X_stimg"
    del slide.obsm["X_stimg_slide"]
    stimg.tl.domains(slide, 3)
    assert slide.uns["stimg"]["domains"]["use_rep"] == "X_stimg"


@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_of_very_many_observations_some_are_fitted_and_all_assigned(monkeypatch, method):
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=900)
    slide = anndata.AnnData(np.zeros((900, 1), dtype=np.float32))
    slide.obsm["X_stimg"] = rng.normal(size=(3, 20))[truth] * 3 + rng.normal(size=(900, 20))
    stimg.tl.domains(slide, 3, method=method, key_added="whole")
    for module in ("_features", "_kmeans", "_mixture"):
        monkeypatch.setattr(f"stimg._cluster.{module}.MOST_FINISHED", 200)
    monkeypatch.setattr("stimg._cluster._mixture.MOST_FITTED", 100)
    stimg.tl.domains(slide, 3, method=method, key_added="some")
    assert adjusted_rand_score(slide.obs["whole"], slide.obs["some"]) > 0.95
    assert adjusted_rand_score(truth, slide.obs["some"]) > 0.95


@pytest.mark.parametrize("merge", [None, "same"])
def test_embeddings_of_slides_joined_afterwards_are_not_compared(make_slide, trained, merge):
    """Each slide has components of its own; parts of one slide, or of slides that were embedded together, do not."""
    slides = {name: make_slide(seed=seed) for name, seed in (("a", 0), ("b", 1))}
    for slide in slides.values():
        stimg.tl.embed(slide, trained)
    joined = anndata.concat(slides, label="batch", index_unique="-", uns_merge=merge)
    for use_rep in (None, "X_stimg_slide", ["X_stimg_slide", "X_stimg"]):
        with pytest.raises(ValueError, match=r"several runs of `stimg.tl.embed`.*use_rep='X_stimg'"):
            stimg.tl.domains(joined, 3, use_rep=use_rep)
    stimg.tl.domains(joined, 3, use_rep="X_stimg")
    halves = [slides["a"][:200], slides["a"][200:]]
    stimg.tl.domains(anndata.concat(halves), 3)
    stimg.pp.to_lattice(joined, library_key="batch")
    stimg.tl.embed(joined, trained)
    stimg.tl.domains(joined[::3].copy(), 3)
