from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stimg._input import _checks as v
from stimg._input._values import check_expression

COUNTS = np.array([[0, 2, 1], [3, 0, 0]])


@pytest.fixture
def table():
    return ad.AnnData(COUNTS.astype(np.float32), obs=pd.DataFrame({"s": ["a", None]}, index=["x", "y"]))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array, sparse.coo_array])
def test_counts_of_any_storage(kind, dtype):
    values = kind(COUNTS.astype(dtype))
    result = check_expression(values, "counts")
    assert isinstance(result, sparse.csr_array)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result.toarray(), COUNTS)
    assert values.dtype == dtype


def test_expression_with_logs_and_zeros():
    np.testing.assert_allclose(check_expression(np.log1p(COUNTS), "log").toarray(), np.log1p(COUNTS), rtol=1e-6)
    assert check_expression(np.zeros((2, 2)), "log").nnz == 0
    assert check_expression(COUNTS > 0, "counts").nnz == 3


@pytest.mark.parametrize(
    ("values", "scale", "error", "match"),
    [
        (COUNTS * np.nan, "counts", ValueError, "NaN"),
        (np.where(COUNTS > 2, np.inf, COUNTS), "log", ValueError, "infinite"),
        (COUNTS - 1, "counts", ValueError, "1 negative|negative"),
        (COUNTS / 2, "counts", ValueError, "non-integer values"),
        (COUNTS, "log", ValueError, "integers up to 3"),
        (COUNTS * 100.5, "log", ValueError, "log1p"),
        (COUNTS, "cpm", ValueError, "scale"),
        (COUNTS.astype(complex), "counts", TypeError, "complex"),
        (COUNTS.astype(str), "counts", TypeError, "dtype"),
    ],
)
def test_expression_that_does_not_fit(values, scale, error, match):
    with pytest.raises(error, match=match):
        check_expression(values, scale, name="layers['x']")


def test_lazy_expression_is_refused():
    dask = pytest.importorskip("dask.array")
    with pytest.raises(TypeError, match="compute"):
        check_expression(dask.from_array(COUNTS), "counts")


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None])
def test_positive_int(value):
    with pytest.raises(ValueError, match="`size`"):
        v.check_positive_int("size", value)
    v.check_positive_int("size", np.int32(3), minimum=3)


def test_keys(table):
    with pytest.raises(KeyError, match="not found in `adata.obsm`.*Do it"):
        v.check_obsm(table, "lattice", advice="Do it.")
    with pytest.raises(KeyError, match=r"`section`.*\['s'\]"):
        v.check_obs_key(table, "x", argument="section")
    with pytest.raises(ValueError, match="1 missing"):
        v.check_library_key(table, "s")
    v.check_library_key(table, None)
    with pytest.raises(KeyError, match="layer"):
        v.get_layer(table, "counts")
    assert v.get_layer(table, None) is table.X


def test_no_expression():
    table = ad.AnnData(obs=pd.DataFrame(index=["x"]), var=pd.DataFrame(index=["g"]))
    with pytest.raises(KeyError, match="empty"):
        v.get_layer(table, None)


def test_gene_names(table):
    v.check_var_unique(table)
    table.var_names = ["a", "a", "b"]
    with pytest.raises(ValueError, match=r"\['a'\].*make_unique"):
        v.check_var_unique(table)
