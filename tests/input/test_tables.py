from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import stimg
from stimg._input import _tables


def table(n_obs=4, n_vars=3):
    return ad.AnnData(np.ones((n_obs, n_vars), dtype=np.float32))


@pytest.fixture
def sdata():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import spatialdata
    return lambda *names: spatialdata.SpatialData(tables={name: table() for name in names})


def test_anndata_is_itself():
    slide = table()
    assert _tables.resolve_table(slide) is slide


@pytest.mark.parametrize("value", [None, "slide.h5ad", np.ones((2, 2)), []])
def test_other_types(value):
    with pytest.raises(TypeError, match="AnnData or SpatialData"):
        _tables.resolve_table(value)


class Modalities:
    """What of a `MuData` is looked at."""

    mod = {"rna": None, "protein": None}
    obsm = {}


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ("folder/slide.h5ad", r"'folder/slide.h5ad'.*anndata\.read_h5ad\(path\)"),
        (Path("slide.h5ad"), r"anndata\.read_h5ad\(path\)"),
        (Path("slide.zarr"), r"spatialdata\.read_zarr\(path\)"),
        ("outs/", "the reader of its format in `squidpy.read`"),
        ([1, 2], r"list of 2. Give one slide at a time.*anndata.concat\(slides, label='section'"),
        ({"a": 1}, r"dict with \['a'\]. Give one of its slides, such as `\['a'\]`"),
        (Modalities(), r"modalities \['rna', 'protein'\].*`.mod\['rna'\]`"),
    ],
)
def test_how_it_becomes_a_slide(given, cure):
    for step in (_tables.resolve_table, stimg.pp.to_lattice, stimg.pp.select_genes, stimg.pl.domains):
        with pytest.raises(TypeError, match=f"Expected an AnnData or SpatialData, found .*{cure}"):
            step(given)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_empty(shape):
    with pytest.raises(ValueError, match="observations and genes"):
        _tables.resolve_table(table(*shape))


def test_backed(tmp_path):
    table().write_h5ad(tmp_path / "slide.h5ad")
    backed = ad.read_h5ad(tmp_path / "slide.h5ad", backed="r")
    assert _tables.resolve_table(backed) is backed
    with pytest.raises(ValueError, match="to_memory"):
        _tables.resolve_table(backed, copy=True)
    with pytest.raises(ValueError, match="to_memory"):
        _tables.resolve_table(backed[:2])
    backed.file.close()


def test_lazy_annotation(tmp_path):
    table().write_zarr(tmp_path / "slide.zarr")
    with pytest.raises(ValueError, match="`adata.obs` and `adata.var` in memory"):
        _tables.resolve_table(ad.experimental.read_lazy(tmp_path / "slide.zarr"))


def test_tables(sdata):
    one, two, none = sdata("a"), sdata("a", "b"), sdata()
    assert _tables.resolve_table(one) is one["a"]
    assert _tables.resolve_table(two, "b") is two["b"]
    with pytest.raises(ValueError, match=r"'a', 'b'"):
        _tables.resolve_table(two)
    with pytest.raises(ValueError, match="has no table. Add one"):
        _tables.resolve_table(none)
    with pytest.raises(KeyError, match=r"'c'.*'a', 'b'"):
        _tables.resolve_table(two, "c")


def test_prepare(sdata):
    slide = table()
    assert _tables.prepare(slide, None, copy=False) == (slide, None)
    target, result = _tables.prepare(slide, None, copy=True)
    assert target is result
    assert target is not slide
    both = sdata("a", "b")
    target, result = _tables.prepare(both, "b", copy=True)
    assert target is result["b"]
    target.obs["new"] = 1
    assert "new" not in both["b"].obs


def test_views_become_objects():
    slide = table()
    view = slide[:2]
    target, _ = _tables.prepare(view, None, copy=False)
    target.obs["new"] = 1
    assert target is view
    assert not view.is_view
    assert "new" not in slide.obs


def test_libraries_have_all_parts():
    slide = table()
    slide.uns["spatial"] = {
        "a": {"images": [1], "scalefactors": None},
        "is_single": True,
        "b": {"images": {"hires": 1}},
    }
    found = _tables.libraries_of(slide)
    empty = {"images": {}, "scalefactors": {}, "metadata": {}}
    assert found == {"a": empty, "b": empty | {"images": {"hires": 1}}}
    assert slide.uns["spatial"]["a"]["scalefactors"] is None


@pytest.mark.parametrize("value", [0, -1.0, np.inf, "one", "0.5 um", [1, 2], {}, b"x"])
def test_scale_factors_that_are_not_positive_numbers_are_named(value):
    with pytest.raises(ValueError, match=r"`microns_per_pixel` in .*positive number, found"):
        _tables.scale_factor({"scalefactors": {"microns_per_pixel": value}}, "microns_per_pixel")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), "0.5", np.array(0.5), np.array([0.5])])
def test_scale_factors_as_files_hold_them(value):
    assert _tables.scale_factor({"scalefactors": {"x": value}}, "x") == 0.5


def test_missing_scale_factors():
    for factors in ({}, {"x": None}, {"x": np.nan}):
        assert _tables.scale_factor({"scalefactors": factors}, "x") is None
    assert _tables.scale_factor({}, "x") is None
