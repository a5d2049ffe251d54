"""Scores of domains, embeddings, reconstructions and expression predicted from images."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_retrieval": ["embedding_scores", "retrieval_recall"],
        "_domains": ["domain_scores"],
        "_expression": ["expression_scores", "gene_correlations", "smooth_expression"],
        "_interpolation": ["hide_regions", "interpolate_hidden"],
        "_probes": ["probe", "transfer_probe"],
        "_reconstruction": ["reconstruction_scores"],
    },
)

if TYPE_CHECKING:
    from stimg.metrics._domains import domain_scores as domain_scores
    from stimg.metrics._expression import expression_scores as expression_scores
    from stimg.metrics._expression import gene_correlations as gene_correlations
    from stimg.metrics._expression import smooth_expression as smooth_expression
    from stimg.metrics._interpolation import hide_regions as hide_regions
    from stimg.metrics._interpolation import interpolate_hidden as interpolate_hidden
    from stimg.metrics._probes import probe as probe
    from stimg.metrics._probes import transfer_probe as transfer_probe
    from stimg.metrics._reconstruction import reconstruction_scores as reconstruction_scores
    from stimg.metrics._retrieval import embedding_scores as embedding_scores
    from stimg.metrics._retrieval import retrieval_recall as retrieval_recall
