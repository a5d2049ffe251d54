"""Models that are passed to a function or loaded by it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from stimg.models._trained_model import TrainedModel

    M = TypeVar("M", bound=TrainedModel)


def given_model(kind: type[M], model: M | str | Path, argument: str = "model") -> M:
    """Return a model of this kind as it is, or load it from a path (a `Model` also by its name or address)."""
    from stimg.models import Model, load

    if isinstance(model, kind):
        return model
    if isinstance(model, str | Path):
        return load(model) if kind is Model else kind.load(model)  # type: ignore[return-value]
    wanted = f"a `stimg.models.{kind.__name__}`{', a name of `stimg.models.available()`' if kind is Model else ''}"
    msg = f"Expected `{argument}` to be {wanted} or a path, found {type(model).__name__}."
    raise TypeError(msg)
