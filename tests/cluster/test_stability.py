"""The number of domains, chosen by stability."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import stimg
from stimg._cluster import _stability
from stimg._cluster._stability import choose_number

WIDTH = 10


def sites(n_domains, rng, *, spread=4.0, around=None):
    """Centres in random directions at one distance from `around`."""
    centres = rng.normal(size=(n_domains, WIDTH))
    centres *= spread * np.sqrt(WIDTH) / np.linalg.norm(centres, axis=1, keepdims=True)
    return centres if around is None else around + centres


def embedding(centres, rng, *, n_each=40, noise=0.5):
    return np.concatenate([centre + rng.normal(0, noise, (n_each, WIDTH)) for centre in centres])


def chosen(values, method="kmeans", **options):
    options = {"candidates": range(2, 11), "seed": 0, "libraries": np.zeros(len(values), int)} | options
    return choose_number(values, method=method, **options)


@pytest.mark.parametrize("true", [3, 5, 8])
@pytest.mark.parametrize("method", ["mixture", "kmeans"])
def test_the_true_number_of_separate_domains_is_found(method, true):
    rng = np.random.default_rng(true)
    number, found = chosen(embedding(sites(true, rng), rng), method, candidates=[2, true - 1, true, true + 1])
    assert number == true
    assert found["candidates"][found["mean"].argmax()] == true
    assert found["mean"].max() > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_two_groups_of_domains_are_not_taken_for_two_domains(seed):
    """Two groups of two and three domains are found again perfectly, but three clusters divide them anew each time."""
    rng = np.random.default_rng(seed)
    groups = sites(2, rng, spread=12)
    domains = np.concatenate([sites(n, rng, spread=4, around=group) for n, group in zip((2, 3), groups, strict=True)])
    number, found = chosen(embedding(domains, rng), candidates=range(2, 8))
    assert number == 5
    assert found["same"][0].mean() > 0.95
    assert found["next"][0].mean() < 0.85
    assert found["mean"][0] < found["mean"][3]


def test_the_best_score_is_taken_the_smallest_of_equals_and_the_runner_up_is_said(caplog):
    numbers = np.array([3, 4, 5, 6])
    same = np.repeat([[0.5], [0.9], [0.92], [0.6]], 4, axis=1)
    number, found = _stability._best(numbers, same, same)
    assert number == found["chosen"] == 4
    assert found["runner_up"] == 5
    assert found["equal"].tolist() == [False, True, True, False]
    assert caplog.messages[-1] == (
        "4 domains are found again best (score 0.90); the runner-up is 5 (0.92); of 4, 5, which are about equal, the "
        "smallest is taken."
    )
    number, found = _stability._best(numbers, same, np.repeat([[0.9], [0.5], [0.9], [0.9]], 4, axis=1))
    assert (number, found["runner_up"]) == (5, 6)
    np.testing.assert_allclose(found["mean"], [0.7, 0.7, 0.91, 0.75])
    assert found["equal"].tolist() == [False, False, True, False]
    assert caplog.messages[-1] == "5 domains are found again best (score 0.91); the runner-up is 6 (0.75)."
    assert _stability._best(numbers[:1], same[:1], same[:1])[1]["runner_up"] == 0
    assert caplog.messages[-1] == "3 domains are found again best (score 0.50)."


@pytest.mark.slow
@pytest.mark.parametrize("true", [3, 5, 8])
def test_the_true_number_of_a_synthetic_slide_is_taken_of_2_to_12(true, caplog):
    slide = stimg.datasets.synthetic("visium", n_domains=true, n_obs=1000, seed=3)
    sc.pp.normalize_total(slide)
    sc.pp.log1p(slide)
    sc.pp.pca(slide)
    stimg.tl.domains(slide, "auto", use_rep="X_pca")
    assert slide.obs["stimg_domain"].nunique() == true
    runner_up = slide.uns["stimg"]["domains"]["stability"]["runner_up"]
    assert f"{true} domains are found again best (score " in caplog.text
    assert f"; the runner-up is {runner_up} (" in caplog.text


def test_leiden_finds_the_number_within_sections():
    rng = np.random.default_rng(0)
    values = embedding(sites(3, rng), rng, n_each=20)
    coordinates = np.column_stack([np.arange(60) % 10, np.arange(60) // 10]).astype(float)
    libraries = np.arange(60) // 30
    number, _ = chosen(values, "leiden", candidates=[3, 4], libraries=libraries, coordinates=coordinates)
    assert number == 3


def test_without_structure_no_number_stands_out():
    values = np.random.default_rng(0).normal(size=(200, WIDTH))
    with pytest.warns(UserWarning, match=r"stands out: \d domains .*score 0\.[0-4]\d.*runner-up .*`n_domains`"):
        chosen(values, candidates=[3, 5, 8])


def test_the_same_seed_gives_the_same_curve_and_the_record_can_be_drawn(tmp_path):
    rng = np.random.default_rng(1)
    slide = ad.AnnData(np.zeros((160, 1), np.float32), obsm={"X_stimg": embedding(sites(4, rng), rng)})
    for key, seed in (("one", 3), ("same", 3), ("other", 4)):
        stimg.tl.domains(slide, "auto", method="kmeans", candidates=(6, 3, 4, 4), rng=seed, key_added=key)
    one, same, other = (slide.uns["stimg"][key]["stability"] for key in ("one", "same", "other"))
    assert one["candidates"].tolist() == [3, 4, 6]
    assert one["runs"].shape == (3, _stability.RUNS["kmeans"])
    np.testing.assert_allclose(one["mean"], one["runs"].mean(1))
    np.testing.assert_allclose(one["runs"], (one["same"] + one["next"]) / 2)
    assert one["chosen"] == 4
    assert one["runner_up"] in (3, 6)
    assert one["error"].shape == (3,)
    np.testing.assert_array_equal(one["runs"], same["runs"])
    assert not np.array_equal(one["runs"], other["runs"])
    slide.write_h5ad(tmp_path / "slide.h5ad")
    back = ad.read_h5ad(tmp_path / "slide.h5ad").uns["stimg"]["one"]["stability"]
    for name, values in one.items():
        np.testing.assert_array_equal(back[name], values)


def test_every_section_is_drawn_from_and_large_slides_by_a_part(monkeypatch):
    rng = np.random.default_rng(0)
    libraries = np.repeat([0, 1, 2], [300, 20, 1])
    drawn = _stability._draw(np.arange(321), libraries, 0.5, rng)
    assert np.bincount(libraries[drawn]).tolist() == [150, 10, 1]
    sizes = []

    def spy(values, number, **options):
        sizes.append(len(values))
        return np.arange(len(values)) % number, None

    monkeypatch.setattr(_stability, "cluster", spy)
    monkeypatch.setattr(_stability, "MOST_COMPARED", 100)
    with pytest.warns(UserWarning, match="stands out"):
        chosen(rng.normal(size=(321, WIDTH)), candidates=[2, 3], libraries=libraries)
    assert max(sizes) <= 82


def test_more_domains_than_a_run_has_observations_are_left_out():
    rng = np.random.default_rng(0)
    values = embedding(sites(3, rng), rng, n_each=4)
    with pytest.warns(UserWarning, match=r"`candidates` \[11\]"):
        assert chosen(values, candidates=[3, 11])[0] == 3


def test_where_one_domain_more_cannot_be_reached_only_equal_numbers_are_compared(recwarn):
    values = np.repeat(np.eye(4), 20, axis=0)
    number, found = chosen(values, candidates=[3, 4])
    assert number == 4
    np.testing.assert_array_equal(found["same"][1], 1)
    np.testing.assert_array_equal(found["next"][1], found["same"][1])
    assert (found["next"][0] < 1).all()
    assert not recwarn.list


def test_agreement_is_the_adjusted_rand_index_over_shared_observations():
    from sklearn.metrics import adjusted_rand_score

    labels = np.random.default_rng(0).integers(-1, 4, (3, 50))
    labels[2] = np.where(labels[1] >= 0, 3 - labels[1], -1)
    finer = np.random.default_rng(1).integers(-1, 5, (3, 50))

    def score(one, other):
        both = (one >= 0) & (other >= 0)
        return adjusted_rand_score(one[both], other[both])

    found = _stability._agreement(labels, labels)
    assert score(labels[1], labels[2]) == 1
    np.testing.assert_allclose(found[0], (score(labels[0], labels[1]) + score(labels[0], labels[2])) / 2)
    np.testing.assert_allclose(found[1], (score(labels[0], labels[1]) + 1) / 2)
    found = _stability._agreement(labels, finer)
    pairs = [(0, 1), (0, 2), (1, 0), (2, 0)]
    np.testing.assert_allclose(found[0], np.mean([score(labels[i], finer[j]) for i, j in pairs]))
