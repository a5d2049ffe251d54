"""Expression read in blocks of rows, wherever it is stored."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stimg import _keys
from stimg._files import claim_folder
from stimg._input._checks import check_choice, get_layer
from stimg._input._values import LARGEST_LOG_COUNT, check_block, check_expression, check_scale
from stimg._settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO
    from pathlib import Path

    from anndata import AnnData

NONZEROS_A_BLOCK = 2**23
NONZEROS_AT_ONCE = 2**18
DENSE_A_BLOCK = 2**24
ROWS_JUDGED = 200


def is_stored(values: Any) -> bool:
    """Tell whether a matrix is not in memory: a backed file, zarr, or a dask array."""
    return not (sparse.issparse(values) or isinstance(values, np.ndarray))


def checked_rows(values: Any, scale: str, *, name: str = "X") -> Iterator[sparse.csr_array]:
    """Yield expression in blocks of rows as CSR float32, with the checks and errors of `check_expression`.

    A matrix in memory is one block (itself, if it is such a CSR). A dask array is read by its own chunks, any other
    stored matrix in blocks of limited size; a sparse one that is stored by columns is a `TypeError`.
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
    check_scale(scale, whole, largest, name=name)


def expression_blocks(table: AnnData, layer: str | None, scale: str) -> Iterator[sparse.csr_array]:
    """Yield the expression in `.X`, or in the layer asked for, as `checked_rows`.

    Where it does not fit, or is all zeros, the `ValueError` says which layer, or `.raw`, can be used.
    """
    values = get_layer(table, layer)
    name, empty = _keys.matrix_name(layer), True
    try:
        for block in checked_rows(values, scale, name=name):
            empty = empty and not block.data.any()
            yield block
        if empty:
            msg = f"`adata.{name}` holds zeros only. Name the `layer` with expression; available: {list(table.layers)}."
            raise ValueError(msg)
    except ValueError as e:
        if advice := _usable_elsewhere(table, layer, scale):
            raise ValueError(f"{e} {advice}") from None
        raise


def read_expression(
    table: AnnData, layer: str | None, scale: str, *, into: np.ndarray | None = None
) -> sparse.csr_array:
    """Return checked expression as CSR float32, memory-mapped if it is not in memory.

    Counts of each column are added to those of the column `into`, int64 (n_vars,), if given.
    """
    blocks = expression_blocks(table, layer, scale)
    if into is not None:
        blocks = (_add_columns(block, into, scale) for block in blocks)
    return collect_rows(blocks, table.n_vars, mapped=is_stored(get_layer(table, layer)))


def _usable_elsewhere(table: AnnData, layer: str | None, scale: str) -> str:
    """Say which other part of a table holds counts, or else log-normalised values, judged by its first rows."""
    others = [name for name in table.layers if name != layer and name not in table.uns.get(_keys.UNS, {})]
    places = {f"`adata.layers[{name!r}]`: pass `layer={name!r}`": table.layers[name] for name in others}
    if layer is not None:
        places["`adata.X`: leave out `layer`"] = table.X
    if table.raw is not None:
        places["`adata.raw`: use `adata.raw.to_adata()`"] = table.raw.X
    found: dict[str, str] = {}
    for where, values in places.items():
        if values is None or getattr(values, "format", "csr") == "csc":
            continue
        block = values[:ROWS_JUDGED]
        block = block.compute() if hasattr(block, "compute") else block
        data = block.data if sparse.issparse(block) else np.asarray(block)
        if data.dtype.kind in "uif" and data.any() and (data >= 0).all():
            kind = "counts" if (data == np.rint(data)).all() else "log" if data.max() <= LARGEST_LOG_COUNT else ""
            found.setdefault(kind, where)
    for kind, name in (("counts", "Raw counts"), ("log", "Log-normalised values")):
        if kind in found:
            return f"{name} are in {found[kind]}{'' if kind == scale else f' and `scale={kind!r}`'}."
    return ""


def _add_columns(matrix: sparse.csr_array, into: np.ndarray, scale: str) -> sparse.csr_array:
    """Add counts of each column to those of another; log-normalised values as counts."""
    moved = np.isin(np.arange(len(into)), into[into != np.arange(len(into))]) | (into != np.arange(len(into)))
    data, here = matrix.data.copy(), moved[matrix.indices]
    if scale == "log":
        data[here] = np.expm1(data[here])
    result = sparse.csr_array((data, into[matrix.indices], matrix.indptr.copy()), shape=matrix.shape)
    result.sum_duplicates()
    if scale == "log":
        here = moved[result.indices]
        result.data[here] = np.log1p(result.data[here])
    return result


def collect_rows(blocks: Iterable[sparse.csr_array], n_columns: int, *, mapped: bool) -> sparse.csr_array:
    """Join blocks of rows to one float32 matrix, in memory or memory-mapped.

    A mapped matrix lies in files in the cache (an `OSError` if the disk is full). The system loads their pages when
    they are read and drops them when memory runs short. The files are removed after their last use; if this process is
    killed, by the next one that maps expression.
    """
    if not mapped:
        parts = list(blocks)
        return parts[0] if len(parts) == 1 else sparse.csr_array(sparse.vstack(parts, format="csr"))
    cache = settings.cachedir / "expression"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        folder, remove = claim_folder(cache, "rows.")
    except OSError as e:
        msg = f"Cannot write into {str(cache)!r} ({e}). Set `stimg.settings.cachedir` to another folder."
        raise OSError(msg) from e
    ends = [np.zeros(1, dtype=np.int64)]
    try:
        # Unbuffered, so that a full disk is noticed while writing and not while closing.
        with (folder / "data").open("wb", 0) as data, (folder / "indices").open("wb", 0) as indices:
            for block in blocks:
                _write(data, block.data, np.float32)
                _write(indices, block.indices, np.int32)
                ends.append(ends[-1][-1] + block.indptr[1:].astype(np.int64))
    except BaseException:
        remove()
        raise
    indptr = np.concatenate(ends)
    values, columns = _mapped(folder / "data", np.float32), _mapped(folder / "indices", np.int32)
    weakref.finalize(values, remove)
    index = np.int32 if indptr[-1] <= np.iinfo(np.int32).max else np.int64  # scipy wants one dtype for both
    return _view(values, columns.astype(index, copy=False), indptr.astype(index), n_columns)


def _write(file: FileIO, values: np.ndarray, dtype: Any) -> None:
    try:
        rest = np.ascontiguousarray(values, dtype=dtype).view(np.uint8)
        while len(rest):
            rest = rest[file.write(rest.data) :]
    except OSError as e:
        msg = (
            f"Could not write expression to {file.name!r} ({e}). Make room there (8 bytes per non-zero value), or set "
            "`stimg.settings.cachedir` to another folder."
        )
        raise OSError(msg) from e


def is_mapped(matrix: sparse.csr_array) -> bool:
    """Tell whether a matrix is memory-mapped by `collect_rows`."""
    return isinstance(matrix.data, np.memmap)


def row_blocks(matrix: sparse.csr_array) -> Iterator[tuple[slice, sparse.csr_array]]:
    """Yield a matrix in blocks of rows that fit the processor's caches, without copying; small matrices whole."""
    for start, stop in by_nonzeros(matrix.indptr, NONZEROS_AT_ONCE):
        if stop - start == matrix.shape[0]:
            yield slice(start, stop), matrix
            return
        part = slice(int(matrix.indptr[start]), int(matrix.indptr[stop]))
        indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
        yield slice(start, stop), _view(matrix.data[part], matrix.indices[part], indptr, matrix.shape[1])


def _view(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, n_columns: int) -> sparse.csr_array:
    """Make a CSR that shares these arrays; scipy's constructor would copy views and cast maps."""
    matrix = sparse.csr_array((len(indptr) - 1, n_columns), dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def by_nonzeros(indptr: np.ndarray, most: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield ranges of at least one row with at most about `most` non-zeros, `NONZEROS_A_BLOCK` by default."""
    most = most or NONZEROS_A_BLOCK
    start, n_rows = 0, len(indptr) - 1
    while start < n_rows:
        stop = int(np.searchsorted(indptr, indptr[start] + most, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        yield start, stop
        start = stop


def _row_ranges(values: Any) -> Iterator[tuple[int, int]]:
    """Yield the ranges of rows of a stored matrix that are each read at once."""
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
            f"Expected `adata.{name}` stored by rows (CSR), found {values.format}, which cannot be read by rows. "
            "Load it (`adata.to_memory()`), or write it again as CSR."
        )
        raise TypeError(msg)
    if hasattr(values, "dask") and not np.isfinite(np.array(values.chunks[0], dtype=float)).all():
        msg = f"Expected a dask array with known chunks in `adata.{name}`. Call `.compute_chunk_sizes()` on it first."
        raise TypeError(msg)
    if not hasattr(values, "shape") or not hasattr(values, "__getitem__"):
        msg = f"Expected a matrix in `adata.{name}`, found {type(values).__name__}."
        raise TypeError(msg)


def _mapped(path: Path, dtype: type) -> np.ndarray:
    """Map a file into memory, or return an empty array if it is empty."""
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype=dtype)
