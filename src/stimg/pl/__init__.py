"""Look at patches, domains, reconstructions and training."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_domains": ["domains"],
        "_expression_map": ["expression_map"],
        "_gene_correlation": ["gene_correlation"],
        "_history": ["history"],
        "_patches": ["patches"],
        "_reconstruction": ["reconstruction"],
    },
)

if TYPE_CHECKING:
    from stimg.pl._domains import domains as domains
    from stimg.pl._expression_map import expression_map as expression_map
    from stimg.pl._gene_correlation import gene_correlation as gene_correlation
    from stimg.pl._history import history as history
    from stimg.pl._patches import patches as patches
    from stimg.pl._reconstruction import reconstruction as reconstruction
