"""The number of domains, chosen by stability."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

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
def test_of_nested_numbers_the_smallest_is_taken(seed, caplog):
    """3, 5 and 8 are all true: two of three regions have two layers, three of the five layers have two kinds."""
    rng = np.random.default_rng(seed)
    regions = sites(3, rng, spread=30)
    layers = np.concatenate([*(sites(2, rng, spread=7, around=region) for region in regions[:2]), regions[2:]])
    kinds = np.concatenate([*(sites(2, rng, spread=1.5, around=layer) for layer in layers[:3]), layers[3:]])
    assert len(kinds) == 8
    number, found = chosen(embedding(kinds, rng, noise=0.2), candidates=[3, 5, 8])
    assert number == 3
    assert (found["mean"] > 0.9).all()
    assert found["equal"][0]
    assert f"equally well: 3 ({found['mean'][0]:.2f})" in caplog.text


def test_leiden_finds_the_number_within_sections():
    rng = np.random.default_rng(0)
    values = embedding(sites(3, rng), rng, n_each=20)
    coordinates = np.column_stack([np.arange(60) % 10, np.arange(60) // 10]).astype(float)
    libraries = np.arange(60) // 30
    number, _ = chosen(values, "leiden", candidates=[3, 4], libraries=libraries, coordinates=coordinates)
    assert number == 3


def test_without_structure_no_number_stands_out():
    values = np.random.default_rng(0).normal(size=(200, WIDTH))
    with pytest.warns(UserWarning, match=r"No number of domains stands out: .* at most by 0\.\d\d.*`n_domains`"):
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


def test_agreement_is_the_adjusted_rand_index_over_shared_observations():
    from sklearn.metrics import adjusted_rand_score

    labels = np.random.default_rng(0).integers(-1, 4, (3, 50))
    labels[2] = np.where(labels[1] >= 0, 3 - labels[1], -1)
    found = _stability._agreement(labels, 4)
    score = {}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        both = (labels[one] >= 0) & (labels[other] >= 0)
        score[one, other] = adjusted_rand_score(labels[one, both], labels[other, both])
    assert score[1, 2] == 1
    np.testing.assert_allclose(found[0], (score[0, 1] + score[0, 2]) / 2)
    np.testing.assert_allclose(found[1], (score[0, 1] + 1) / 2)
