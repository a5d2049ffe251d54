from ._alignment_model import AlignmentModel as AlignmentModel
from ._expression_model import ExpressionModel as ExpressionModel
from ._model import Model as Model
from ._registry import available as available
from ._registry import card as card
from ._registry import load as load
