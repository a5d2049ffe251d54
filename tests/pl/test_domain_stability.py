from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

import stimg

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=200, n_genes=20, n_domains=3)
    rng = np.random.default_rng(0)
    slide.obsm["X_stimg"] = rng.normal(0, 4, (3, 8))[slide.obs["domain"].cat.codes] + rng.normal(size=(200, 8))
    stimg.tl.domains(slide, "auto", method="kmeans", candidates=(2, 3, 4, 5))
    return slide


def test_the_curve_the_choice_and_the_runner_up_are_drawn(slide):
    found = slide.uns["stimg"]["domains"]["stability"]
    assert found["chosen"] == 3
    ax = stimg.pl.domain_stability(slide)
    (curve,) = ax.containers
    np.testing.assert_allclose(curve.lines[0].get_data(), [[2, 3, 4, 5], found["mean"]])
    bars = np.array([bar[:, 1] for bar in curve.lines[2][0].get_segments()])
    np.testing.assert_allclose(np.ptp(bars, axis=1), 2 * found["error"])
    marks = {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
    assert list(marks) == ["chosen: 3", f"runner-up: {found['runner_up']}"]
    for number, line in zip((3, found["runner_up"]), marks.values(), strict=True):
        assert line.get_xdata() == number
        assert line.get_ydata() == pytest.approx(found["mean"][number - 2])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(marks)


def test_it_takes_axes_and_a_single_candidate(slide):
    stimg.tl.domains(slide, "auto", method="kmeans", candidates=(3,), key_added="single")
    _, ax = plt.subplots()
    assert stimg.pl.domain_stability(slide, "single", ax=ax, title="one") is ax
    assert ax.get_title() == "one"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["chosen: 3"]


def test_without_scores_it_says_what_to_run(slide):
    stimg.tl.domains(slide, 3, key_added="given")
    for key in ("given", "none"):
        with pytest.raises(KeyError, match=rf"no scores of numbers of domains.*'auto', key_added='{key}'"):
            stimg.pl.domain_stability(slide, key)
    del slide.uns["stimg"]["stimg_domain"]["stability"]["runner_up"]
    with pytest.raises(KeyError, match=r"older version, without \['runner_up'\]"):
        stimg.pl.domain_stability(slide)
