from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import stimg


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def slides():
    slides = [stimg.datasets.synthetic(n_obs=60, n_genes=20, n_domains=3, seed=seed) for seed in range(3)]
    for slide, condition in zip(slides, ("late", "early", "late"), strict=True):
        slide.obs["time"] = condition
        slide.uns["domain_colors"] = ["#112233", "#445566", "#778899"]
    return slides


def test_bars_are_the_shares_in_the_domains_own_colours(slides):
    slides[1].obs["domain"] = slides[1].obs["domain"].where(slides[1].obs["domain"] != "layer1")
    ax = stimg.pl.domain_proportions(slides, "domain", names=["a", "b", "c"], condition_key="time")
    right = stimg.tl.domain_proportions(slides, "domain", names=["a", "b", "c"], condition_key="time")
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    np.testing.assert_allclose(heights.T.ravel(), right["share"])
    np.testing.assert_allclose(heights.sum(0), 1)
    tops = [bar.get_y() + bar.get_height() for bar in ax.containers[-1]]
    np.testing.assert_allclose(tops, 1)
    colours = [mpl.colors.to_hex(bars[0].get_facecolor()) for bars in ax.containers]
    assert colours == ["#112233", "#445566", "#778899"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["b", "a", "c"]
    assert [text.get_text() for text in ax.texts] == ["early", "late"]
    assert np.diff(ax.get_xticks())[0] > np.diff(ax.get_xticks())[1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["layer3", "layer2", "layer1"]
    assert ax.get_ylabel() == "share of observations"


def test_colours_follow_their_domain_where_the_first_slide_lacks_one(slides):
    slides[0].obs["domain"] = slides[0].obs["domain"].where(slides[0].obs["domain"] != "layer2")
    ax = stimg.pl.domain_proportions(slides[0], "domain")
    assert [mpl.colors.to_hex(bars[0].get_facecolor()) for bars in ax.containers] == ["#112233", "#778899"]


def test_takes_axes_and_title(slides):
    _, ax = plt.subplots()
    assert stimg.pl.domain_proportions(slides, "domain", ax=ax, title="mine") is ax
    assert ax.get_title() == "mine"
    with pytest.raises(KeyError, match="condition_key"):
        stimg.pl.domain_proportions(slides, "domain", condition_key="none")
