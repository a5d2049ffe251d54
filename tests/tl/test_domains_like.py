"""`stimg.tl.domains(levels=...)` and `like=...`: what is written."""

from __future__ import annotations

import anndata
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection

import stimg

mpl.use("Agg")


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=300, n_genes=20, n_domains=4)
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 4, (4, 10))
    slide.obsm["X_stimg"] = centres[slide.obs["domain"].cat.codes] + rng.normal(size=(300, 10))
    return slide


def colours_drawn(slide, key):
    ax = stimg.pl.domains(slide, key)
    drawn = next(one for one in ax.collections if isinstance(one, EllipseCollection)).get_facecolors()
    plt.close("all")
    return drawn


def test_levels_are_written_each_under_its_own_key(slide, tmp_path):
    stimg.tl.domains(slide, 5)
    before = slide.obs["stimg_domain"].copy()
    stimg.tl.domains(slide, levels=(3, 4, 6))
    assert (slide.obs["stimg_domain"] == before).all()
    assert slide.uns["stimg"]["stimg_domain"]["n_domains"] == 5
    stimg.tl.domains(slide, 3, key_added="flat")
    assert (slide.obs["stimg_domain_3"] == slide.obs["flat"]).all()
    coarse, fine = slide.obs["stimg_domain_3"].astype(str), slide.obs["stimg_domain_6"].astype(str)
    assert all(part == whole or part.startswith(f"{whole}.") for whole, part in zip(coarse, fine, strict=True))
    for number in (3, 4, 6):
        key = f"stimg_domain_{number}"
        assert slide.obs[key].nunique() == len(slide.uns[f"{key}_colors"]) == number
        assert slide.obs[f"{key}_confidence"].dtype == np.float32
        assert slide.uns["stimg"][key]["n_domains"] == number
    assert slide.uns["stimg"]["stimg_domain_levels"]["levels"] == [3, 4, 6]
    slide.write_h5ad(tmp_path / "slide.h5ad")
    back = anndata.read_h5ad(tmp_path / "slide.h5ad")
    assert stimg.pl.domain_tree(back).get_title() == "stimg_domain (3, 4 and 6 domains)"
    plt.close("all")


def test_levels_of_several_slides_share_names_and_colours(slide):
    other = slide[::2].copy()
    first, second = stimg.tl.domains([slide, other], levels=[2, 4], method="kmeans", copy=True)
    assert "stimg_domain_2" not in slide.obs
    assert (first.obs["stimg_domain_4"][::2].to_numpy() == second.obs["stimg_domain_4"].to_numpy()).all()
    assert list(first.uns["stimg_domain_4_colors"]) == list(second.uns["stimg_domain_4_colors"])


def test_levels_with_refinement_are_nested(slide):
    slide.obsm["X_stimg"] = slide.obsm["X_stimg"] + np.random.default_rng(1).normal(0, 3, (300, 10))
    stimg.tl.domains(slide, levels=(2, 4), method="kmeans", refine=6)
    stimg.tl.domains(slide, 2, method="kmeans", refine=6)
    assert (slide.obs["stimg_domain_2"] == slide.obs["stimg_domain"]).all()
    assert (pd.crosstab(slide.obs["stimg_domain_2"], slide.obs["stimg_domain_4"]) > 0).sum().eq(1).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `n_domains`"),
        ({"n_domains": 3, "levels": (2, 4)}, "either `n_domains`"),
        ({"n_domains": "auto", "levels": (2, 4)}, "either `n_domains`"),
        ({"levels": (4,)}, "at least two"),
        ({"levels": 4}, "at least two"),
        ({"levels": "47"}, "at least two"),
        ({"levels": {3, 5}}, "at least two"),
        ({"levels": (4, 4)}, "from the fewest"),
        ({"levels": (7, 4)}, "from the fewest"),
        ({"levels": (0, 4)}, "`levels`"),
        ({"levels": (2.5, 4)}, "`levels`"),
        ({"levels": (3, 301)}, r"`levels` to be at most .* \(300\)"),
        ({"n_domains": 3, "like": ""}, "`like`"),
        ({"n_domains": 3, "like": "GENE00001"}, "gene 'GENE00001'"),
        ({"n_domains": 3, "like": "depth"}, "Expected categories"),
        ({"n_domains": 3, "like": "empty"}, "all are missing"),
    ],
)
def test_bad_levels_and_columns_are_refused_before_anything_is_written(slide, arguments, message):
    slide.obs["depth"] = np.linspace(0, 1, 300)
    slide.obs["empty"] = pd.Categorical([None] * 300, categories=["a"])
    before = (list(slide.obs), list(slide.uns))
    with pytest.raises(ValueError, match=message):
        stimg.tl.domains(slide, **arguments)
    with pytest.raises(KeyError, match=r"'none' \(`like`\)"):
        stimg.tl.domains(slide, 3, like="none")
    assert (list(slide.obs), list(slide.uns)) == before


@pytest.mark.parametrize("recorded", [True, False])
def test_domains_take_order_and_colours_of_a_column(slide, recorded):
    slide.obs["guess"] = slide.obs["domain"].cat.reorder_categories(["layer3", "layer1", "layer4", "layer2"])
    slide.obs.loc[slide.obs_names[::3], "guess"] = np.nan
    if recorded:
        slide.uns["guess_colors"] = ["black", "#ff0000", "gold", "#0000FF"]
    stimg.tl.domains(slide, 4, key_added="plain")
    stimg.tl.domains(slide, 4, like="guess")
    assert len(pd.crosstab(slide.obs["plain"], slide.obs["stimg_domain"]).to_numpy().nonzero()[0]) == 4
    matched = slide.uns["stimg"]["domains"]["matched"]
    assert matched == list(slide.obs["guess"].cat.categories)
    names = np.array(matched)[slide.obs["stimg_domain"].cat.codes]
    same = names == slide.obs["guess"].astype(object).to_numpy()
    assert same.sum() > 0.95 * slide.obs["guess"].notna().sum()
    np.testing.assert_array_equal(colours_drawn(slide, "guess")[same], colours_drawn(slide, "stimg_domain")[same])


def test_labels_do_not_influence_the_clustering(slide):
    slide.obs["noise"] = np.random.default_rng(0).choice(["a", "b"], size=300)
    stimg.tl.domains(slide, 5, key_added="plain")
    stimg.tl.domains(slide, 5, like="noise")
    assert (pd.crosstab(slide.obs["plain"], slide.obs["stimg_domain"]) > 0).to_numpy().sum() == 5
    assert slide.uns["stimg"]["domains"]["matched"][2:] == ["", "", ""]
    assert len(set(slide.uns["stimg_domain_colors"])) == 5
    np.testing.assert_array_equal(slide.obs["plain_confidence"], slide.obs["stimg_domain_confidence"])


def test_the_coarsest_level_is_like_the_column(slide):
    slide.obs["half"] = np.where(slide.obs["domain"].isin(["layer1", "layer2"]), "upper", "lower")
    stimg.tl.domains(slide, levels=(2, 4), method="kmeans", like="domain")
    record = slide.uns["stimg"]["stimg_domain_levels"]
    assert record["like"] == "domain"
    assert len(record["matched"]) == 2
    expected = [["#0072B2", "#E69F00", "#009E73", "#CC79A7"][int(name[-1]) - 1] for name in record["matched"]]
    assert list(slide.uns["stimg_domain_2_colors"]) == expected


def test_slides_must_agree_on_categories_and_colours(slide):
    other = slide[::2].copy()
    other.obs["domain"] = other.obs["domain"].cat.rename_categories({"layer1": "L1"})
    with pytest.raises(ValueError, match=r"same categories of `adata.obs\['domain'\]` \(`like`\)"):
        stimg.tl.domains([slide, other], 3, like="domain")
    other = slide[::2].copy()
    other.uns["domain_colors"] = ["red", "green", "blue", "gold"]
    with pytest.raises(ValueError, match="same colours"):
        stimg.tl.domains([slide, other], 3, like="domain")
    slide.uns["domain_colors"] = ["red", "green", "blue", "gold"]
    stimg.tl.domains([slide, other], 4, like="domain")
    assert list(other.uns["stimg_domain_colors"]) == ["red", "green", "blue", "gold"]


def test_domains_can_be_like_their_own_earlier_run(slide):
    stimg.tl.domains(slide, 4)
    first, colours = slide.obs["stimg_domain"].copy(), list(slide.uns["stimg_domain_colors"])
    slide.obs["stimg_domain"] = first.cat.reorder_categories(["4", "2", "1", "3"])
    slide.uns["stimg_domain_colors"] = [colours[i] for i in (3, 1, 0, 2)]
    stimg.tl.domains(slide, 4, like="stimg_domain", rng=3)
    assert slide.uns["stimg"]["domains"]["matched"] == ["4", "2", "1", "3"]
    assert list(slide.uns["stimg_domain_colors"]) == [colours[i] for i in (3, 1, 0, 2)]
