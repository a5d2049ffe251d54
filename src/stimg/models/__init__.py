"""Trained models: weights with their card, saved as one safetensors file."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_alignment_model": ["AlignmentModel"],
        "_expression_model": ["ExpressionModel"],
        "_model": ["Model"],
        "_registry": ["available", "card", "load"],
    },
)

if TYPE_CHECKING:
    from stimg.models._alignment_model import AlignmentModel as AlignmentModel
    from stimg.models._expression_model import ExpressionModel as ExpressionModel
    from stimg.models._model import Model as Model
    from stimg.models._registry import available as available
    from stimg.models._registry import card as card
    from stimg.models._registry import load as load
