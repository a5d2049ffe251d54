"""Coordinates are read whatever real numbers they are stored as, and refused where digits were lost."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stimg
from stimg._input._coordinates import check_coordinates
from stimg._slide._lattice import read_lattice

CELLS = np.random.default_rng(0).integers(0, 250, (300, 2)) / 2.0


def table(values=CELLS):
    made = ad.AnnData(np.ones((len(CELLS), 3), np.float32))
    made.obsm["spatial"] = values
    return made


def frame(values, columns=("x", "y"), dtype=None):
    return pd.DataFrame(values, columns=columns, index=map(str, range(len(values))), dtype=dtype)


STORED = {
    "float32": CELLS.astype(np.float32),
    "float16 with enough digits": CELLS.astype(np.float16),
    "big-endian": CELLS.astype(">f8"),
    "big-endian float32": CELLS.astype(">f4"),
    "extended": CELLS.astype(np.longdouble),
    "by columns": np.asfortranarray(CELLS),
    "objects": CELLS.astype(object),
    "data frame": frame(CELLS),
    "data frame without names": frame(CELLS, ["first", "second"]),
    "data frame, y first": frame(CELLS[:, ::-1], ["Y", "X"]),
    "nullable": frame(CELLS, dtype="Float64"),
    "sparse": sparse.csr_matrix(CELLS),
    "with a third": np.column_stack([CELLS, np.zeros(len(CELLS))]),
}


@pytest.mark.parametrize("stored", STORED)
def test_real_numbers_of_any_kind(stored):
    values = check_coordinates(table(STORED[stored]), "spatial")
    assert values.dtype == np.dtype(np.float64)
    np.testing.assert_array_equal(values, CELLS)
    plain, other = table(), table(STORED[stored])
    for slide in (plain, other):
        stimg.pp.to_lattice(slide, "free")
    np.testing.assert_array_equal(other.obsm["lattice"], plain.obsm["lattice"])
    np.testing.assert_array_equal(read_lattice(other).sites, plain.obsm["lattice"])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i4", np.uint64, "Int64"])
def test_whole_numbers_of_any_kind(dtype):
    whole = np.rint(CELLS)
    stored = frame(whole, dtype=dtype) if dtype == "Int64" else whole.astype(dtype)
    np.testing.assert_array_equal(check_coordinates(table(stored), "spatial"), whole)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (CELLS.astype(str), r"found text \(such as .*spatial'\].astype\(float\)"),
        (CELLS.astype(str).astype(object), r"found text.*astype\(float\)"),
        (frame(CELLS.astype(str)), r"found text.*astype\(float\)"),
        (CELLS.astype(complex), "found complex"),
        (CELLS > 50, "found bool"),
        (np.where(CELLS > 120, None, CELLS), "NaN.* in "),
        (np.where(CELLS > 120, pd.NA, CELLS.astype(object)), "NaN.* in "),
        (frame(CELLS).where(CELLS < 120, pd.NA).astype("Float64"), "NaN.* in "),
        (CELLS[:, :1], "shape"),
    ],
)
def test_what_is_no_number(values, message):
    slide = table(values)
    with pytest.raises(ValueError, match=message):
        stimg.pp.to_lattice(slide)
    assert list(slide.obsm) == ["spatial"]


def test_text_becomes_coordinates_by_the_cure():
    slide = table(CELLS.astype(str))
    with pytest.raises(ValueError, match="astype") as caught:
        check_coordinates(slide, "spatial")
    exec(str(caught.value).split("run `")[1].split("`")[0], {"adata": slide})
    np.testing.assert_array_equal(check_coordinates(slide, "spatial"), CELLS)


def test_masked_coordinates_are_missing():
    class Table:  # `AnnData` drops masks
        obsm = {"spatial": np.ma.masked_where(CELLS > 120, CELLS)}

    with pytest.raises(ValueError, match="NaN"):
        check_coordinates(Table(), "spatial")


@pytest.mark.parametrize("offset", [0, 3000])
@pytest.mark.parametrize("kind", ["visium", "free"])
def test_digits_lost_in_half_precision(kind, offset):
    slide = stimg.datasets.synthetic(kind, n_obs=200, n_genes=20)
    slide.obsm["spatial"] = (slide.obsm["spatial"] / 5 + offset).astype(np.float16)
    if not offset:
        stimg.pp.to_lattice(slide)
        return
    with pytest.raises(ValueError, match="stored as float16.*multiples of 2, with neighbours.*store them as float64"):
        stimg.pp.to_lattice(slide)


def test_numbers_beyond_half_precision():
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="numbers above 65504 are infinite"):
        check_coordinates(table((CELLS * 1000).astype(np.float16)), "spatial")


def test_digits_lost_in_single_precision():
    nanometres = CELLS * 1e-3 + 1e6
    with pytest.raises(ValueError, match=r"stored as float32.*multiples of 0\.0625"):
        check_coordinates(table(nanometres.astype(np.float32)), "spatial")
    check_coordinates(table((CELLS + 1e5).astype(np.float32)), "spatial")
    check_coordinates(table(nanometres), "spatial")


@pytest.mark.parametrize("step", ["domains", "moran", "plot"])
def test_every_step_reads_them_in_the_same_way(step):
    slide = stimg.datasets.synthetic("free", n_obs=200, n_genes=20)
    slide.obsm["X"] = np.random.default_rng(0).normal(size=(200, 4))
    slide.obsm["spatial"] = slide.obsm["spatial"].astype(str)
    with pytest.raises(ValueError, match=r"astype\(float\)"):
        if step == "domains":
            stimg.tl.domains(slide, 3, use_rep="X", refine=True)
        elif step == "moran":
            stimg.pp.select_genes(slide, 5, method="moran")
        else:
            stimg.pl.domains(slide, "domain")


def test_missing_coordinates_are_counted():
    with pytest.raises(ValueError, match="1 of 300"):
        check_coordinates(table(np.where(np.arange(600).reshape(300, 2) == 5, np.nan, CELLS)), "spatial")
    with pytest.raises(ValueError, match=r"300 of 300 .*another `spatial_key`, or `del adata.obsm\['spatial'\]`"):
        check_coordinates(table(CELLS * np.nan), "spatial")
    with pytest.raises(KeyError, match="'xy' not found.*spatial_key"):
        check_coordinates(table(), "xy")
