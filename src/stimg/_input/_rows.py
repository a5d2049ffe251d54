"""Expression in chunks of rows, wherever it is stored."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stimg._input._checks import check_block, check_choice, check_expression, check_log
from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO
    from pathlib import Path

NONZEROS_A_BLOCK = 2**23
NONZEROS_AT_ONCE = 2**18
DENSE_A_BLOCK = 2**24


def is_stored(values: Any) -> bool:
    """Tell whether a matrix is somewhere else than in memory: a backed file, zarr, or a dask array."""
    return not (sparse.issparse(values) or isinstance(values, np.ndarray))


def checked_rows(values: Any, scale: str, *, name: str = "X") -> Iterator[sparse.csr_array]:
    """Yield expression in chunks of rows as CSR float32, checked as by `check_expression`.

    Of a matrix in memory one chunk, the matrix itself where it is such a CSR; of others as many non-zeros as fit a
    chunk, or for dask the rows of its own chunks.

    Raises
    ------
    TypeError, ValueError
        As `check_expression`; a sparse matrix that is stored by columns.
    """
    if not is_stored(values):
        yield check_expression(values, scale, name=name)
        return
    check_choice("scale", scale, ("counts", "log"))
    _check_layout(values, name)
    largest, whole = 0.0, True
    for start, stop in _row_ranges(values):
        block = values[start:stop]
        if hasattr(block, "compute"):
            block = block.compute()
        matrix, integer, most = check_block(block, scale, name=f"{name}[{start}:{stop}]")
        largest, whole = max(largest, most), whole and integer
        yield matrix
    if scale == "log":
        check_log(whole, largest, name=name)


def read_rows(values: Any, scale: str, *, name: str = "X") -> sparse.csr_array:
    """Return checked expression as CSR float32: in memory what is there, memory-mapped what is not."""
    return collect_rows(checked_rows(values, scale, name=name), values.shape[1], mapped=is_stored(values))


def collect_rows(blocks: Iterable[sparse.csr_array], n_columns: int, *, mapped: bool) -> sparse.csr_array:
    """Return blocks of rows as one matrix float32, in memory or memory-mapped.

    A mapped one is written to files in the cache. The system reads their pages when they are needed and drops them
    when memory is. The files go with the last use.

    Raises
    ------
    OSError
        The disk is full.
    """
    if not mapped:
        parts = list(blocks)
        return parts[0] if len(parts) == 1 else sparse.csr_array(sparse.vstack(parts, format="csr"))
    folder = _temporary_folder()
    ends = [np.zeros(1, dtype=np.int64)]
    try:
        # Unbuffered, so that a full disk is an error of the write and not of the closing.
        with (folder / "data").open("wb", 0) as data, (folder / "indices").open("wb", 0) as indices:
            for block in blocks:
                _write(data, block.data, np.float32)
                _write(indices, block.indices, np.int32)
                ends.append(ends[-1][-1] + block.indptr[1:].astype(np.int64))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    indptr = np.concatenate(ends)
    values, columns = _mapped(folder / "data", np.float32), _mapped(folder / "indices", np.int32)
    weakref.finalize(values, shutil.rmtree, folder, ignore_errors=True)
    index = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64  # scipy wants one dtype for both
    return _view(values, columns.astype(index, copy=False), indptr.astype(index), n_columns)


def _write(file: FileIO, values: np.ndarray, dtype: Any) -> None:
    try:
        rest = np.ascontiguousarray(values, dtype=dtype).view(np.uint8)
        while len(rest):
            rest = rest[file.write(rest.data) :]
    except OSError as e:
        msg = (
            f"Expression could not be kept in {file.name!r} ({e}). Make room there, eight bytes a non-zero, or name "
            "another folder with `stimg.settings.cachedir`."
        )
        raise OSError(msg) from e


def is_mapped(matrix: sparse.csr_array) -> bool:
    """Tell whether a matrix is memory-mapped by `collect_rows`."""
    return isinstance(matrix.data, np.memmap)


def row_blocks(matrix: sparse.csr_array) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Yield the rows of a matrix in blocks whose non-zeros fit the caches, without a copy; small matrices whole."""
    for start, stop in by_nonzeros(matrix.indptr, NONZEROS_AT_ONCE):
        if stop - start == matrix.shape[0]:
            yield slice(start, stop), matrix
            return
        part = slice(int(matrix.indptr[start]), int(matrix.indptr[stop]))
        indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
        yield slice(start, stop), _view(matrix.data[part], matrix.indices[part], indptr, matrix.shape[1])


def _view(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_columns: int) -> sparse.csr_array:
    """Make a CSR of these very arrays; scipy's constructor copies views and casts maps."""
    matrix = sparse.csr_array((len(indptr) - 1, n_columns), dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def by_nonzeros(indptr: np.ndarray, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows with about `most` non-zeros each, by default `NONZEROS_A_BLOCK`, at least one row."""
    most = most or NONZEROS_A_BLOCK
    start, n_rows = 0, len(indptr) - 1
    while start < n_rows:
        stop = int(np.searchsorted(indptr, indptr[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        yield start, stop
        start = stop


def _row_ranges(values: Any) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of a stored matrix that are read at once."""
    n_rows, n_columns = values.shape
    if hasattr(values, "dask"):
        stops = np.cumsum(values.chunks[0]).tolist()
        yield from zip([0, *stops[:-1]], stops, strict=True)
    elif hasattr(values, "group"):
        yield from by_nonzeros(values.group["indptr"][:])
    else:
        step = max(1, DENSE_A_BLOCK // max(n_columns, 1))
        yield from ((start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def _check_layout(values: Any, name: str) -> None:
    """Refuse a matrix that cannot be read by rows."""
    if getattr(values, "format", "csr") != "csr":
        msg = (
            f"Expected `adata.{name}` stored by rows (CSR), found {values.format}, of which rows cannot be read. Load "
            "it (`adata.to_memory()`), or write it again as CSR."
        )
        raise TypeError(msg)
    if hasattr(values, "dask") and not np.isfinite(np.array(values.chunks[0], dtype=float)).all():
        msg = f"Expected a dask array of known chunks in `adata.{name}`. Call `.compute_chunk_sizes()` on it first."
        raise TypeError(msg)
    if not hasattr(values, "shape") or not hasattr(values, "__getitem__"):
        msg = f"Expected a matrix in `adata.{name}`, found {type(values).__name__}."
        raise TypeError(msg)


def _temporary_folder() -> Path:
    """Make a folder of its own in the cache."""
    from pathlib import Path

    folder = settings.cachedir / "expression"
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def _mapped(path: Path, dtype: type) -> np.ndarray:
    """Map a file; an empty one cannot be."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
