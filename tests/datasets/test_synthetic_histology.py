"""A slide whose H&E determines its expression."""

import numpy as np
import pytest

import stimg
from stimg._image._footprints import disk_footprints


def test_counts_are_those_of_the_map_inside_the_spots():
    slide = stimg.datasets.synthetic_histology(n_rows=6, n_cols=8, n_genes=6, depth=5000)
    truth = slide.uns["stimg_truth"]
    centres = slide.obsm["spatial"][:, ::-1] * 2.0 / truth["mpp"]
    radius = 50 / truth["mpp"]
    areas = disk_footprints(centres, radius, truth["map"].shape[1:])
    expected = areas @ truth["map"].reshape(6, -1).T / (np.pi * radius**2)
    counts = slide.X.toarray()
    assert np.abs((counts - expected) / np.sqrt(expected + 1)).mean() < 1.0
    assert counts.sum(1).mean() == pytest.approx(5000, rel=0.3)


def test_slides_of_different_seeds_share_their_genes():
    first, again, other = (
        stimg.datasets.synthetic_histology(n_rows=3, n_cols=3, n_genes=6, seed=seed) for seed in (0, 0, 1)
    )
    image = "hires"
    pictures = [slide.uns["spatial"]["histology"]["images"][image] for slide in (first, again, other)]
    assert np.array_equal(pictures[0], pictures[1]) and not np.array_equal(pictures[0], pictures[2])
    assert pictures[0].dtype == np.uint8
    assert (first.X != again.X).nnz == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_rows": 1}, "`n_rows`"),
        ({"depth": -1.0}, "`depth`"),
        ({"depth": float("nan")}, "`depth`"),
        ({"n_rows": 10**5, "n_cols": 10**5}, "Ask for fewer"),
        ({"n_genes": 10**6}, "Ask for fewer"),
    ],
)
def test_bad_sizes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        stimg.datasets.synthetic_histology(**options)
