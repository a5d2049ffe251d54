"""Draw the losses of a training run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import pandas as pd

from stimg._input._checks import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stimg.models import AlignmentModel, ExpressionModel, Model


@checked
def history(model: Model | ExpressionModel | AlignmentModel | pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw training and validation loss against epochs.

    Parameters
    ----------
    model
        From :func:`stimg.tl.pretrain`, :func:`stimg.tl.train_expression` or :func:`stimg.tl.align`, or its `history`.
    ax
        Axes to draw on.

    Returns
    -------
    Axes
        With one line per loss.

    Raises
    ------
    TypeError
        `model` is neither a model nor a table.
    KeyError
        The table lacks a column.
    ValueError
        The history is empty.

    Examples
    --------
    >>> slide = stimg.pp.to_lattice(stimg.datasets.synthetic_histology(n_rows=6, n_cols=6), "st", copy=True)
    >>> model = stimg.tl.align(stimg.pp.to_image_patches(slide), max_steps=2)
    >>> stimg.pl.history(model).get_title()
    'Loss by epoch'
    """
    table: pd.DataFrame = getattr(model, "history", model)
    if not isinstance(table, pd.DataFrame):
        msg = f"Expected a trained model or its `history`, found {type(model).__name__}."
        raise TypeError(msg)
    if missing := [name for name in ("epoch", "train_loss", "val_loss") if name not in table]:
        msg = f"Columns {missing} not found in the history. Available: {list(table)}. Pass `model.history`."
        raise KeyError(msg)
    if not len(table):
        msg = "Expected a model with a history, found an empty one: it was not trained in epochs."
        raise ValueError(msg)
    if ax is None:
        ax = plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
    ax.plot(table["epoch"] + 1, table["train_loss"], marker="o", ms=3, color="#0072B2", label="training")
    if table["val_loss"].notna().any():
        ax.plot(table["epoch"] + 1, table["val_loss"], marker="o", ms=3, color="#D55E00", label="held out")
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    ax.set_title("Loss by epoch")
    ax.legend(frameon=False)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
