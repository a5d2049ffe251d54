"""What the fuzz tests draw, and how they judge: strange slides, junk arguments, damaged files."""

from __future__ import annotations

import hashlib
import signal
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy import sparse

import stimg

HERE = str(Path(stimg.__file__).parent)
MOST_SECONDS = 300
ERRORS = (ImportError, ValueError, TypeError, KeyError, RuntimeError, OSError, IndexError)


def attempt(call, *watched: ad.AnnData) -> bool:
    """Call; return whether it worked. An error must be raised by stimg's own code and leave the slides as they were."""
    before = [fingerprint(one) for one in watched]
    try:
        with warnings.catch_warnings(), ends():
            warnings.simplefilter("ignore")
            call()
    except ERRORS as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        assert where.startswith(HERE), f"{type(error).__name__}: {error}, raised in {where}"
        text = str(error)
        assert len(text) > 20, text
        assert [fingerprint(one) for one in watched] == before, f"changed before the error: {error}"
        return False
    return True


@contextmanager
def ends() -> Iterator[None]:
    """Turn a call that never ends into a failure; no case takes more than seconds."""

    def stop(*_: object) -> None:
        msg = f"The call did not end in {MOST_SECONDS} s."
        raise AssertionError(msg)

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fingerprint(adata: ad.AnnData) -> str:
    """Hash of everything in a slide: values, dtypes, formats, names and their order."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, ad.AnnData):
            add((value.shape, value.is_view, value.X, value.obs, value.var))
            for part in (value.obsm, value.varm, value.obsp, value.layers, value.uns):
                add(dict(part))
        elif isinstance(value, dict):
            for name in value:
                add((name, value[name]))
        elif isinstance(value, tuple | list):
            for one in value:
                add(one)
        elif isinstance(value, pd.DataFrame):
            add((value.index.to_numpy(), [(name, value[name]) for name in value]))
        elif isinstance(value, pd.Series):
            add((str(value.dtype), value.astype(object).to_numpy()))
        elif sparse.issparse(value):
            value = value.tocoo(copy=True) if value.format == "coo" else value
            add((type(value).__name__, value.shape, value.data, value.indices, value.indptr))
        elif isinstance(value, da.Array):
            add((value.name, value.chunks))
        elif isinstance(value, np.ndarray) and value.dtype != object:
            add((str(value.dtype), value.shape))
            found.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, np.ndarray):
            add([repr(one) for one in value.ravel()])
        else:
            found.update(repr(value).encode())

    add(adata)
    return found.hexdigest()


ODD_NAMES = ("GENE1", "gène", "遺伝子", "", " ", "a/b", "nan", "ENSG00000141736.14", "x" * 300, "1")


@st.composite
def slides(draw) -> ad.AnnData:
    """Slides as users have them, and as nobody should.

    Half of them are sound, of whatever types and names, so that they come to the last step.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sound = draw(st.booleans())
    n_obs = draw(st.sampled_from([30, 60] if sound else [1, 2, 7, 30, 60, 0]))
    n_vars = draw(st.sampled_from([40, 60] if sound else [1, 2, 12, 40, 0]))
    x = rng.poisson(draw(st.sampled_from([0.2, 3.0] if sound else [0.0, 0.2, 3.0])), (n_obs, n_vars)).astype(float)
    faults = [None] * 4 + ["log"] if sound else [None] * 6 + ["nan", "inf", "negative", "fraction", "huge", "log"]
    fault = draw(st.sampled_from(faults))
    if x.size and fault == "log":
        x = np.log1p(x)
    elif x.size and fault:
        x.flat[rng.integers(x.size)] = {"nan": np.nan, "inf": np.inf, "negative": -2, "fraction": 0.3, "huge": 1e30}[
            fault
        ]
    dtypes = ["float32", "float64", "float16", ">f4"]
    dtypes += [] if fault else ["int32", "int64", "uint8", "int16", ">i4", "bool"]
    x = x.astype(draw(st.sampled_from(dtypes)))
    values = store(draw(st.sampled_from(["csr", "csr_array", "csc", "dense", "twice", "zeros", "fortran", "dask"])), x)
    written = draw(
        st.sampled_from(["GENE{:05d}"] * 3 + ["gene{:05d}", "Gene{:05d}", "GRCh38_GENE{:05d}", "mm10___GENE{:05d}"])
    )
    names = np.array([written.format(i) for i in range(n_vars)], dtype=object)
    if n_vars and draw(st.integers(0, 5)) == 0:
        names[rng.integers(n_vars, size=3)] = rng.choice(np.array(ODD_NAMES, dtype=object), 3)
    spots = [f"spot{i}" for i in range(n_obs)]
    if n_obs and not sound and draw(st.integers(0, 8)) == 0:
        spots = ["twice"] * n_obs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.AnnData(values, obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=names))
        place(adata, draw(st.sampled_from(["hex", "square", "cells"] + ["clash", "none", "over"] * (not sound))), rng)
        spoilt = [] if sound else [None] * 5 + ["nan", "inf", "text", "one", "same", "huge", "half", "swapped"]
        spoil(adata, draw(st.sampled_from([None, "wide", *spoilt])), rng)
        if n_obs and draw(st.booleans()):
            kind = draw(st.sampled_from(["two", "int"] + ["each", "missing"] * (not sound)))
            adata.obs["section"] = sections(kind, n_obs)
        if n_obs and draw(st.integers(0, 5)) == 0:
            adata.obs["in_tissue"] = (rng.random(n_obs) < 0.9).astype(draw(st.sampled_from([int, bool, str])))
        if n_obs and draw(st.integers(0, 4)) == 0:
            adata = adata[rng.permutation(n_obs)[: max(1, n_obs // 2)]]
    return adata


def store(kind: str, x: np.ndarray):
    """Put the same values into another container."""
    if kind == "dense" or (
        (x.dtype == np.float16 or not x.dtype.isnative) and kind not in ("fortran", "dask")
    ):  # scipy has no such matrices
        return x
    if kind == "fortran":
        return np.asfortranarray(x)
    if kind == "dask":
        return da.from_array(x, chunks=(7, -1)) if x.size else x
    if kind == "csc":
        return sparse.csc_matrix(x)
    if kind == "csr_array":
        return sparse.csr_array(x)
    matrix = sparse.csr_matrix(x)
    if kind == "twice" and matrix.dtype.kind in "fi" and matrix.nnz and np.isfinite(matrix.data).all():
        rows = np.repeat(np.arange(x.shape[0]), np.diff(matrix.indptr))
        half = matrix.data / 2 if matrix.dtype.kind == "f" else matrix.data // 2
        parts = np.concatenate([half, matrix.data - half]).astype(matrix.dtype)
        matrix = sparse.coo_matrix((parts, (np.tile(rows, 2), np.tile(matrix.indices, 2))), shape=x.shape)
        return _unsummed(matrix)
    if kind == "zeros" and matrix.nnz:
        matrix.data[0] = 0
    return matrix


def _unsummed(matrix: sparse.coo_matrix) -> sparse.csr_matrix:
    order = np.argsort(matrix.row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(matrix.row, minlength=matrix.shape[0]))])
    return sparse.csr_matrix((matrix.data[order], matrix.col[order], indptr), shape=matrix.shape)


def place(adata: ad.AnnData, kind: str, rng: np.random.Generator) -> None:
    """Give observations array positions or coordinates."""
    n = adata.n_obs
    side = int(np.ceil(np.sqrt(max(n, 1))))
    row, col = np.divmod(np.arange(n), side)
    if kind in ("hex", "square"):
        adata.obs["array_row"], adata.obs["array_col"] = row, 2 * col + row % 2 if kind == "hex" else col
    if kind == "clash":
        adata.obs["array_row"], adata.obs["array_col"] = row // 2, col // 2
    if kind == "over":  # the second half of the slide lies over the first
        row, col = row % max(side // 2, 1), col
    if kind != "none":
        grid = np.column_stack([col + 0.5 * (row % 2), row * 0.866])
        adata.obsm["spatial"] = 100.0 * (rng.uniform(0, side, (n, 2)) if kind == "cells" else grid)


def spoil(adata: ad.AnnData, fault: str | None, rng: np.random.Generator) -> None:
    """Spoil places in one way."""
    n = adata.n_obs
    if not n or not fault:
        return
    if fault == "text" and "array_row" in adata.obs:
        adata.obs["array_row"] = ["a"] + adata.obs["array_row"].astype(str).tolist()[1:]
    if "spatial" not in adata.obsm:
        return
    values = adata.obsm["spatial"].copy()
    if fault in ("nan", "inf", "huge"):
        values[rng.integers(n)] = {"nan": np.nan, "inf": np.inf, "huge": 1e12}[fault]
    if fault == "one":
        values = values[:, :1]
    if fault == "wide":
        values = np.column_stack([values, values[:, 0]])
    if fault == "same":
        values[:] = 5
    if fault in ("half", "swapped"):
        values = values.astype({"half": np.float16, "swapped": ">f8"}[fault])
    adata.obsm["spatial"] = values


def sections(kind: str, n: int):
    """Column of sections, as categories, one each, with missing values, or as numbers."""
    if kind == "two":
        return pd.Categorical(["é" if i % 2 else "b" for i in range(n)], categories=["unused", "é", "b"])
    if kind == "each":
        return [f"s{i}" for i in range(n)]
    if kind == "int":
        return np.arange(n) // 10
    return [None if i == 0 else "a" for i in range(n)]


JUNK = st.sampled_from(
    [None, -1, 0, 1, 3, 10**5, 0.5, -2.5, float("nan"), float("inf"), "", "nonsense", "spatial", True, False]
    + [[], ["a"], [1, 2], {}, {"a": 1}, (), np.array([1.0, 2.0]), np.zeros((2, 2)), object(), b"bytes", 1j]
)


def damaged(data: bytes, kind: str, place: float, rng: np.random.Generator) -> bytes:
    """Return a file's bytes with a part cut, overwritten, doubled or lost."""
    at = int(place * len(data))
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        changed = bytearray(data)
        for one in rng.integers(len(data), size=5):
            changed[one] ^= 1 << int(rng.integers(8))
        return bytes(changed)
    if kind == "noise":
        return data[:at] + rng.bytes(32) + data[at + 32 :]
    if kind == "doubled":
        return data + data
    return data[:at] + data[at + 64 :]
