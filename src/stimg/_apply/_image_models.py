"""What every use of a model of H&E begins with: the model, and its genes in the table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from stimg.models._image_model import ImageModel

if TYPE_CHECKING:
    from anndata import AnnData

M = TypeVar("M", bound=ImageModel)


def get_image_model(model: Any, kind: type[M]) -> M:
    """Pass a model through, or read it from a file."""
    if isinstance(model, kind):
        return model
    if isinstance(model, str | Path):
        return kind.load(model)
    msg = f"Expected `model` to be a `stimg.models.{kind.__name__}` or a path, found {type(model).__name__}."
    raise TypeError(msg)


def model_columns(table: AnnData, model: ImageModel) -> np.ndarray:
    """Column of each of the model's genes in a table, int64 (n_genes,), -1 for those that it lacks, never all."""
    columns = table.var_names.get_indexer(pd.Index(model.genes))
    if (columns < 0).all():
        msg = (
            f"None of the model's {len(model.genes)} genes ({', '.join(model.genes[:3])}, ...) is in `adata.var_names` "
            f"({', '.join(table.var_names[:3])}, ...). Check species and gene identifiers."
        )
        raise ValueError(msg)
    return columns
