from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import stimg


def slide_of(labels, **columns):
    obs = pd.DataFrame({"stimg_domain": labels, **columns}, index=[f"spot{i}" for i in range(len(labels))])
    return anndata.AnnData(np.ones((len(labels), 2), dtype=np.float32), obs=obs)


@pytest.fixture
def cohort():
    """Four samples in one object; the sample `d` lacks domain 2."""
    labels = list("1112") + list("1122") + list("1222") + list("111")
    slide = slide_of(labels, donor=list("aaaabbbbccccddd"))
    slide.obs["drug"] = slide.obs["donor"].map({"a": "yes", "b": "no", "c": "no", "d": "yes"})
    return slide


def test_shares_are_counted_by_hand(cohort):
    found = stimg.tl.domain_proportions(cohort, library_key="donor")
    assert list(found.columns) == ["sample", "domain", "n_obs", "share"]
    assert found["sample"].tolist() == list("aabbccdd")
    assert found["domain"].tolist() == list("12") * 4
    assert found["n_obs"].tolist() == [3, 1, 2, 2, 1, 3, 3, 0]
    np.testing.assert_allclose(found["share"], [0.75, 0.25, 0.5, 0.5, 0.25, 0.75, 1, 0])


def test_conditions_group_the_samples(cohort):
    found = stimg.tl.domain_proportions(cohort, library_key="donor", condition_key="drug")
    assert found["sample"].tolist() == list("bbccaadd")
    assert found["condition"].tolist() == ["no"] * 4 + ["yes"] * 4
    assert list(found.columns[:3]) == ["sample", "condition", "domain"]
    cohort.obs["drug"] = pd.Categorical(cohort.obs["drug"], categories=["yes", "no", "other"])
    again = stimg.tl.domain_proportions(cohort, library_key="donor", condition_key="drug")
    assert again["sample"].tolist() == list("aaddbbcc")
    assert list(again["condition"].cat.categories) == ["yes", "no"]


def test_missing_and_unknown_labels_do_not_count(cohort):
    cohort.obs["stimg_domain"] = ["unknown", np.nan, *cohort.obs["stimg_domain"][2:]]
    found = stimg.tl.domain_proportions(cohort, library_key="donor")
    assert found["n_obs"].tolist()[:2] == [1, 1]
    assert list(found["domain"].cat.categories) == ["1", "2"]


def test_library_key_is_said_once(make_slide):
    slide = make_slide()
    slide.obs["section"] = np.where(
        slide.obsm["spatial"][:, 0] < np.median(slide.obsm["spatial"][:, 0]), "left", "right"
    )
    stimg.pp.to_lattice(slide, library_key="section")
    found = stimg.tl.domain_proportions(slide, "domain")
    assert set(found["sample"]) == {"left", "right"}
    assert found["n_obs"].sum() == slide.n_obs
    assert len(stimg.tl.domain_proportions(make_slide(), "domain")) == 5


def test_a_list_keeps_slides_apart_unless_a_column_joins_them(cohort):
    first, second = cohort[:4].copy(), cohort[4:8].copy()
    names = stimg.tl.domain_proportions([first, second], names=["x", "y"])["sample"]
    assert names.tolist() == list("xxyy")
    assert stimg.tl.domain_proportions([first, second])["sample"].tolist() == ["slide0"] * 2 + ["slide1"] * 2
    second.obs["donor"] = "a"
    joined = stimg.tl.domain_proportions([first, second], library_key="donor")
    assert joined["n_obs"].tolist() == [5, 3]
    for one in (first, second):
        one.obsm["spatial"] = np.arange(8.0).reshape(4, 2) * [1, -1] ** np.array([[1], [2], [1], [2]])
        stimg.pp.to_lattice(one, "free", library_key="donor")
    with pytest.raises(ValueError, match=r"same name: \['a'\]"):
        stimg.tl.domain_proportions([first, second])


def test_sections_over_one_another_are_not_counted_as_one_sample():
    mice = {f"m{seed}": stimg.datasets.synthetic(n_obs=200, n_genes=20, seed=seed) for seed in (0, 1)}
    joined = anndata.concat(mice, label="batch", index_unique="-")
    with pytest.raises(ValueError, match="library_key='batch'"):
        stimg.tl.domain_proportions(joined, "domain")
    assert set(stimg.tl.domain_proportions(joined, "domain", library_key="batch")["sample"]) == {"m0", "m1"}
    assert set(stimg.tl.domain_proportions(joined, "domain", names=["both"])["sample"]) == {"both"}


def test_order_of_domains_is_kept_where_the_first_slide_lacks_one():
    categories = ["1", "2", "10"]
    slides = [slide_of(pd.Categorical(labels, categories)) for labels in (["1", "10"], ["1", "2"])]
    found = stimg.tl.domain_proportions(slides)
    assert list(found["domain"].cat.categories) == categories
    assert found["n_obs"].tolist() == [1, 0, 1, 1, 1, 0]


def test_domains_found_slide_by_slide_are_not_compared():
    slides = [stimg.datasets.synthetic(n_obs=60, n_genes=20, seed=seed) for seed in (0, 1)]
    for slide in slides:
        slide.obsm["X_stimg"] = np.random.default_rng(0).normal(size=(60, 4))
        stimg.tl.domains(slide, 3, method="kmeans")
    with pytest.raises(ValueError, match="found for each slide by itself"):
        stimg.tl.domain_proportions(slides)
    with pytest.raises(ValueError, match="found for each slide by itself"):
        stimg.pl.domain_proportions(slides)
    for slide in slides:  # named by hand
        slide.obs["stimg_domain"] = slide.obs["stimg_domain"].cat.rename_categories(["skin", "fat", "bone"])
    assert stimg.tl.domain_proportions(slides)["n_obs"].sum() == 120
    stimg.tl.domains(slides, 3, method="kmeans")
    assert stimg.tl.domain_proportions(slides)["n_obs"].sum() == 120


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "none"}, KeyError, r"stimg\.tl\.domains"),
        ({"library_key": "none"}, KeyError, "library_key"),
        ({"condition_key": "none"}, KeyError, "condition_key"),
        ({"library_key": "donor", "condition_key": "gaps"}, ValueError, "missing values"),
        ({"library_key": "drug", "condition_key": "donor"}, ValueError, "One|one value"),
        ({"library_key": "donor", "names": ["a"]}, ValueError, "either `names` or"),
        ({"names": ["a", "b"]}, ValueError, "one name per slide"),
        ({"library_key": "donor", "key": "late"}, ValueError, r"without any observation .*\['a'\]"),
    ],
)
def test_bad_input_is_refused(cohort, arguments, error, message):
    cohort.obs["gaps"] = cohort.obs["drug"].where(cohort.obs["donor"] != "b")
    cohort.obs["late"] = cohort.obs["stimg_domain"].where(cohort.obs["donor"] != "a")
    with pytest.raises(error, match=message):
        stimg.tl.domain_proportions(cohort, **arguments)


def test_lists_are_checked(cohort):
    with pytest.raises(ValueError, match="empty list"):
        stimg.tl.domain_proportions([])
    with pytest.raises(ValueError, match="twice"):
        stimg.tl.domain_proportions([cohort, cohort])
    with pytest.raises(ValueError, match="different `names`"):
        stimg.tl.domain_proportions([cohort, cohort.copy()], names=["a", "a"])
