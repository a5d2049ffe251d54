"""Dense tables of counts as CSV, spots x genes, read in bounded memory."""

from __future__ import annotations

import csv
import gzip
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from pathlib import Path

BLOCK_BYTES = 1 << 24


def read_wide_counts(path: Path) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Read a CSV file whose first row names genes and whose first column names spots.

    Blocks of rows become sparse one by one, so that memory is that of the non-zeros and one block.

    Parameters
    ----------
    path
        The file; `.gz` is unpacked on the way.

    Returns
    -------
    tuple
        Counts float32 (n_spots, n_genes) as CSR, names of the spots and of the genes, str.

    Raises
    ------
    OSError
        The file is no such table, or it ends in the middle.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow

    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", newline="") as file:
            header = next(csv.reader(file), [])
        genes = np.array(header[1:], dtype=str)
        if not len(genes):
            raise pa.ArrowInvalid("no header with names of genes")
        columns = [str(i) for i in range(len(header))]
        types: dict[str, Any] = {"0": pa.string()} | dict.fromkeys(columns[1:], pa.float32())
        reader = arrow.open_csv(
            path,
            read_options=arrow.ReadOptions(column_names=columns, skip_rows=1, block_size=BLOCK_BYTES),
            convert_options=arrow.ConvertOptions(column_types=types, null_values=[]),
        )
        parts, spots = [], []
        for block in reader:
            spots.append(np.array(block.column(0).to_pylist(), dtype=str))
            parts.append(sparse.csr_matrix(np.stack([column.to_numpy() for column in block.columns[1:]], axis=1)))
    except (pa.ArrowInvalid, EOFError, UnicodeDecodeError, csv.Error) as e:
        msg = (
            f"Expected a table of counts (spots x genes, comma-separated) in {str(path)!r}, found: {str(e)[:200]}. The "
            "file is damaged or incomplete; get it again."
        )
        raise OSError(msg) from e
    if not parts:
        msg = f"Expected spots in {str(path)!r}, found a header alone. The file is incomplete; get it again."
        raise OSError(msg)
    return sparse.csr_matrix(sparse.vstack(parts)), np.concatenate(spots), genes
