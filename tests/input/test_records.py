"""Each key has its record, and what was said once need not be said again."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import stimg
from stimg._input._records import read_record, said, said_expression, section_codes, write_record


def test_a_second_key_leaves_the_record_of_the_first(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained, readout="encoder", key_added="first")
    stimg.tl.embed(slide, trained, symmetric=False, key_added="second")
    records = slide.uns["stimg"]
    assert (records["first"]["readout"], records["second"]["readout"]) == ("encoder", "decoder")
    assert records["embed"] == records["second"]
    for key in ("first", "second"):
        stimg.tl.domains(slide, 3, use_rep=key, key_added=f"by_{key}")
    assert slide.uns["stimg"]["by_first"]["use_rep"] == "first"
    stimg.tl.reconstruct(slide, trained, hidden=np.arange(slide.n_obs) < 9, key_added="partly")
    stimg.tl.reconstruct(slide, trained)
    assert read_record(slide, "reconstruct", "partly")["n_hidden"] == 9
    assert read_record(slide, "reconstruct", "stimg")["n_hidden"] == 0
    assert all(record["version"] == stimg.__version__ for record in slide.uns["stimg"].values())


def test_keys_do_not_get_in_the_way_of_steps(make_slide, trained):
    slide = make_slide()
    stimg.tl.embed(slide, trained, key_added="mine")
    stimg.tl.domains(slide, 3, use_rep="mine", key_added="mine")
    assert read_record(slide, "embed", "mine")["model"] == trained.card["name"]
    assert read_record(slide, "domains", "mine")["n_domains"] == 3
    before = slide.uns["stimg"]["lattice"]
    with pytest.raises(ValueError, match="another `key_added` than 'lattice'"):
        stimg.tl.embed(slide, trained, key_added="lattice")
    assert slide.uns["stimg"]["lattice"] is before
    stimg.tl.domains(slide, 3, use_rep="mine", key_added="domains")
    stimg.pp.to_lattice(slide, key_added="lat" + "tice")


def test_objects_of_earlier_releases_have_one_record_a_step(slide_hex):
    slide_hex.uns["stimg"] = {"embed": {"key_added": "X_stimg", "model": "old"}, "domains": {"method": "kmeans"}}
    assert read_record(slide_hex, "embed", "X_stimg")["model"] == "old"
    assert read_record(slide_hex, "embed", "other") == {}
    assert read_record(slide_hex, "domains", "stimg_domain") == {"method": "kmeans"}
    write_record(slide_hex, "embed", "other", {"model": "new"})
    assert set(slide_hex.uns["stimg"]) == {"embed", "domains", "other"}


@pytest.fixture
def both():
    slides = [stimg.datasets.synthetic("visium", n_obs=200, n_genes=40, seed=seed) for seed in (0, 1)]
    both = ad.concat(slides, label="section", keys=["a", "b"], index_unique="-")
    both.obsm["places"] = both.obsm.pop("spatial")
    stimg.pp.to_lattice(both, library_key="section", spatial_key="places")
    return both


def test_what_is_given_wins_over_what_was_said(both):
    assert said(both, "library_key", None) == "section"
    assert said(both, "library_key", "other") == "other"
    assert said(both, "spatial_key", None, "spatial") == "places"
    assert said(ad.AnnData(np.ones((2, 2))), "spatial_key", None, "spatial") == "spatial"
    assert np.array_equal(section_codes([both], None), np.repeat([0, 1], 200))
    assert len(np.unique(section_codes([both, both], None))) == 4
    assert said_expression(both, None, None) == (None, "counts")
    both.layers["log"] = np.log1p(both.X)
    stimg.pp.select_genes(both, 20, layer="log", scale="log")
    assert said_expression(both, None, None) == ("log", "log")
    assert said_expression(both, None, "counts") == (None, "counts")


def test_sections_are_kept_apart_by_every_later_step(both):
    stimg.pp.select_genes(both, 20, method="moran")
    assert np.isfinite(both.var["stimg_weight"]).all()
    both.obsm["X_stimg"] = np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    both.obsm["X_stimg"][:200] += 4
    stimg.tl.domains(both, 2, refine=True)  # sections lie over one another
    assert (both.obs["stimg_domain"][:200].nunique(), both.obs["stimg_domain"][200:].nunique()) == (1, 1)
    assert both.uns["stimg"]["domains"]["library_key"] == "section"
    assert both.uns["stimg"]["domains"]["spatial_key"] == "places"
    with pytest.raises(ValueError, match="several sections.*'a', 'b'"):
        stimg.pl.domains(both)
    assert len(stimg.pl.domains(both, library="a").collections[0].get_offsets()) == 200


def test_a_column_of_sections_that_is_gone_is_named_with_the_cure(make_slide):
    slide = make_slide()
    slide.obs["part"] = "a"
    stimg.pp.to_lattice(slide, library_key="part")
    slide.obsm["X"] = np.random.default_rng(0).normal(size=(slide.n_obs, 3))
    slide.obs = slide.obs.rename(columns={"part": "section"})
    for step in (lambda: stimg.tl.domains(slide, 2, use_rep="X"), lambda: stimg.pl.domains(slide, "domain")):
        with pytest.raises(KeyError, match=r"'part' \(`library_key`\) not found.*: run that again"):
            step()
    stimg.pp.to_lattice(slide, library_key="section")
    stimg.tl.domains(slide, 2, use_rep="X")
