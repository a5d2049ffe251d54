"""A lattice is read only where it belongs to the table."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pytest

import stimg
from stimg._slide._lattice import read_lattice


def joined(platform="visium", uns_merge=None, **changes):
    slides = [stimg.datasets.synthetic(platform, n_obs=200, n_genes=40, seed=seed) for seed in (0, 1)]
    for slide in slides:
        stimg.pp.to_lattice(slide)
    return ad.concat(slides, label="section", keys=["a", "b"], index_unique="-", uns_merge=uns_merge, **changes)


@pytest.mark.parametrize("uns_merge", [None, "same", "unique", "first", "only"])
@pytest.mark.parametrize("platform", ["visium", "square", "free"])
def test_joined_slides_are_refused_with_the_cure_which_works(platform, uns_merge, trained):
    both = joined(platform, uns_merge)
    before = sorted(both.obsm)
    for step in (read_lattice, lambda table: stimg.tl.embed(table, trained)):
        with pytest.raises((KeyError, ValueError), match=r"stimg\.pp\.to_lattice\(adata\)` again.*`library_key`"):
            step(both)
    assert sorted(both.obsm) == before
    stimg.pp.to_lattice(both, library_key="section")
    found = read_lattice(both)
    assert (found.libraries, np.bincount(found.section).tolist()) == (["a", "b"], [200, 200])


def test_halves_of_two_slides_are_not_one_slide():
    slides = [stimg.datasets.synthetic("free", n_obs=200, n_genes=40, seed=seed) for seed in (0, 1)]
    slides[1].obsm["spatial"] += 3.3
    for slide in slides:
        stimg.pp.to_lattice(slide)
    both = ad.concat([slides[0][:100], slides[1][100:]], uns_merge="first")
    assert both.n_obs == 200  # as many as the record says
    with pytest.raises(ValueError, match="coordinates up to|on the site of another"):
        read_lattice(both)


@pytest.fixture
def sections():
    both = joined()
    stimg.pp.to_lattice(both, library_key="section")
    return both


def test_renamed_lost_and_missing_sections_are_told(sections):
    renamed, lost, missing = (sections.copy() for _ in range(3))
    renamed.obs["section"] = renamed.obs["section"].astype("category").cat.rename_categories({"a": "left"})
    with pytest.raises(ValueError, match=r"'left'.*renamed"):
        read_lattice(renamed)
    del lost.obs["section"]
    with pytest.raises(KeyError, match="'section'.*not there"):
        read_lattice(lost)
    missing.obs["section"] = missing.obs["section"].astype(object)
    missing.obs.iloc[3, missing.obs.columns.get_loc("section")] = np.nan
    with pytest.raises(ValueError, match="nan"):
        read_lattice(missing)


def test_a_part_of_the_observations_keeps_its_sites(sections, caplog):
    part = sections[np.r_[0:50, 390:400]].copy()
    with caplog.at_level(logging.INFO, logger="stimg"):
        found = read_lattice(part)
    assert "50 of the 200" in caplog.text
    np.testing.assert_array_equal(found.sites, sections.obsm["lattice"][np.r_[0:50, 390:400]])
    one = read_lattice(sections[sections.obs["section"] == "b"].copy())
    assert set(one.section.tolist()) == {1}


def test_changed_sites_and_coordinates_are_refused(slide_hex):
    stimg.pp.to_lattice(slide_hex)
    for change in (lambda x: x.astype(float), lambda x: x[:, :1], lambda x: x - 5):
        other = slide_hex.copy()
        other.obsm["lattice"] = change(other.obsm["lattice"])
        with pytest.raises(ValueError, match="Expected rows and columns"):
            read_lattice(other)
    other = slide_hex.copy()
    other.obsm["lattice"][3] = other.obsm["lattice"][4]
    with pytest.raises(ValueError, match="on the site of another"):
        read_lattice(other)
    other = slide_hex.copy()
    other.obsm["spatial"] *= 2
    with pytest.raises(ValueError, match="coordinates up to"):
        read_lattice(other)


def test_records_of_earlier_releases_are_read(sections):
    new = read_lattice(sections)
    record = sections.uns["stimg"]["lattice"]
    for name in ("n_obs", "n_shared", "deviation", "um_per_unit", "key_added"):
        del record[name]
    old = read_lattice(sections)
    np.testing.assert_array_equal(old.section, new.section)
    np.testing.assert_allclose(old.um_per_unit, new.um_per_unit)


def test_each_section_has_its_own_scale():
    slides = [stimg.datasets.synthetic("visium", n_obs=200, n_genes=40, seed=seed) for seed in (0, 1)]
    slides[1].obsm["spatial"] *= 2.5
    both = ad.concat(slides, label="section", keys=["a", "b"], index_unique="-")
    stimg.pp.to_lattice(both, library_key="section")
    found = read_lattice(both)
    np.testing.assert_allclose(found.pitch, [20, 50])
    np.testing.assert_allclose(found.um_per_unit, [5, 2])
    for name, length in (("a", 5), ("b", 2)):
        both.obs["kind"] = both.obs["domain"]
        ax = stimg.pl.domains(both, "kind", library=name)
        bar = next(one for one in ax.get_children() if type(one).__name__ == "ScaleBar")
        assert bar.dx == pytest.approx(length)
