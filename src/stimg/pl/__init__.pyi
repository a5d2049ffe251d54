from ._domain_stability import domain_stability as domain_stability
from ._domain_tree import domain_tree as domain_tree
from ._domains import domains as domains
from ._expression_map import expression_map as expression_map
from ._gene_correlation import gene_correlation as gene_correlation
from ._history import history as history
from ._patches import patches as patches
from ._reconstruction import reconstruction as reconstruction
