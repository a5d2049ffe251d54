from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Polygon, Rectangle

import stimg

mpl.use("Agg")


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def slide():
    slide = stimg.datasets.synthetic(n_obs=240, n_genes=20)
    rng = np.random.default_rng(0)
    slide.obsm["X_stimg"] = rng.normal(0, 3, (6, 8))[rng.integers(6, size=240)] + rng.normal(size=(240, 8))
    stimg.tl.domains(slide, levels=(2, 3, 6), method="kmeans")
    return slide


def test_every_domain_is_a_box_of_its_size_beside_its_parts(slide):
    ax = stimg.pl.domain_tree(slide)
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    bands = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    assert (len(boxes), len(bands)) == (11, 5)
    texts = {(round(text.get_position()[0]), text.get_text()): text for text in ax.texts}
    for x, number in enumerate((2, 3, 6)):
        key = f"stimg_domain_{number}"
        here = [box for box in boxes if box.get_x() == x]
        sizes = slide.obs[key].value_counts(sort=False, normalize=True)
        np.testing.assert_allclose([box.get_height() for box in here], sizes)
        assert [mpl.colors.to_hex(box.get_facecolor()) for box in here] == [
            mpl.colors.to_hex(colour) for colour in slide.uns[f"{key}_colors"]
        ]
        for box, name in zip(here, sizes.index, strict=True):
            assert (x, name) in texts
            inside = [one for one in boxes if one.get_x() == x + 1]
            covered = [
                one for one in inside if box.get_y() - 1e-9 <= one.get_y() < box.get_y() + box.get_height() - 1e-9
            ]
            if x < 2:
                assert sum(one.get_height() for one in covered) == pytest.approx(box.get_height())
    assert ax.yaxis_inverted()
    assert [text.get_text() for text in ax.get_xticklabels()] == ["2", "3", "6"]


def test_a_part_of_the_slide_is_drawn_with_what_it_has(slide):
    part = slide[slide.obs["stimg_domain_6"] != slide.obs["stimg_domain_6"].cat.categories[0]].copy()
    _, ax = plt.subplots()
    assert stimg.pl.domain_tree(part, ax=ax, title="part") is ax
    assert ax.get_title() == "part"
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    assert sum(box.get_height() for box in boxes) == pytest.approx(3)


def test_what_is_not_a_tree_is_refused(slide):
    with pytest.raises(KeyError, match=r"no nested domains under 'other'.*levels=\.\.\., key_added='other'"):
        stimg.pl.domain_tree(slide, "other")
    slide.obs["stimg_domain_2"] = slide.obs["stimg_domain_2"].to_numpy()[::-1]
    with pytest.raises(ValueError, match="one inside several"):
        stimg.pl.domain_tree(slide)
    del slide.obs["stimg_domain_3"]
    with pytest.raises(KeyError, match="stimg_domain_3"):
        stimg.pl.domain_tree(slide)
