"""Scores of domains, embeddings and reconstructions."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_domains": ["domain_scores"],
        "_interpolation": ["hide_regions", "interpolate_hidden"],
        "_probes": ["probe", "transfer_probe"],
        "_reconstruction": ["reconstruction_scores"],
    },
)

if TYPE_CHECKING:
    from stimg.metrics._domains import domain_scores as domain_scores
    from stimg.metrics._interpolation import hide_regions as hide_regions
    from stimg.metrics._interpolation import interpolate_hidden as interpolate_hidden
    from stimg.metrics._probes import probe as probe
    from stimg.metrics._probes import transfer_probe as transfer_probe
    from stimg.metrics._reconstruction import reconstruction_scores as reconstruction_scores
