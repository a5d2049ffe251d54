from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stimg

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def slide(make_slide, trained):
    slide = make_slide()
    stimg.tl.rank_channels(slide, trained, "domain")
    return slide


def test_bars_are_the_best_genes_of_each_group(slide):
    axes = stimg.pl.rank_channels(slide, n_genes=7)
    ranked = slide.uns["stimg_rank_channels"]
    assert [ax.get_title() for ax in axes] == [f"layer{i}" for i in range(1, 6)]
    assert len(axes[0].figure.axes) == 5
    for ax in axes:
        top = ranked[ranked["group"] == ax.get_title()].head(7)
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], top["score"])
        assert [label.get_text() for label in ax.get_yticklabels()] == list(top["symbol"])
        assert ax.yaxis_inverted()
        blue = [mpl.colors.to_hex(bar.get_facecolor()).upper() == "#0072B2" for bar in ax.patches]
        assert blue == list(top["difference"] > 0)
    below = [ax.xaxis.get_tick_params()["labelbottom"] for ax in axes]
    assert below == [False, True, True, True, True]  # four panels above one
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{w} expression in the group" for w in ("more", "less")
    ]


def test_groups_are_drawn_as_asked_for(slide):
    axes = stimg.pl.rank_channels(slide, groups=["layer5", "layer2"], ncols=1, n_genes=100)
    assert [ax.get_title() for ax in axes] == ["layer5", "layer2"]
    assert [len(ax.patches) for ax in axes] == [40, 40]
    assert stimg.pl.rank_channels(slide, groups="layer3").shape == (1,)


def test_the_whole_embedding_is_one_panel_without_a_legend(make_slide, trained):
    slide = make_slide()
    stimg.tl.rank_channels(slide, trained, key_added="whole")
    (ax,) = stimg.pl.rank_channels(slide, key="whole")
    assert not ax.figure.legends
    assert ax.figure.get_supxlabel() == "share of the variance"


def test_bad_input_is_refused(slide, make_slide):
    slide.uns["other"] = pd.DataFrame({"gene": ["A"]})
    for changes, error, message in (
        ({"key": "none"}, KeyError, "rank_channels"),
        ({"key": "stimg"}, ValueError, "found dict"),
        ({"key": "other"}, ValueError, r"columns \['gene'\]"),
        ({"groups": ["WM"]}, ValueError, r"\['WM'\]"),
        ({"groups": []}, ValueError, "found none"),
        ({"n_genes": 0}, ValueError, "`n_genes`"),
        ({"ncols": 0}, ValueError, "`ncols`"),
    ):
        with pytest.raises(error, match=message):
            stimg.pl.rank_channels(slide, **changes)
    with pytest.raises(KeyError, match="rank_channels"):
        stimg.pl.rank_channels(make_slide())
