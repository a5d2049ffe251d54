from ._domain_proportions import domain_proportions as domain_proportions
from ._domains import domains as domains
from ._expression_map import expression_map as expression_map
from ._gene_correlation import gene_correlation as gene_correlation
from ._history import history as history
from ._patches import patches as patches
from ._rank_genes import rank_genes as rank_genes
from ._reconstruction import reconstruction as reconstruction
