"""Pretrain on patches, embed slides, find domains, reconstruct expression."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_domains": ["domains"],
        "_embed": ["embed"],
        "_pretrain": ["pretrain"],
        "_reconstruct": ["reconstruct"],
    },
)

if TYPE_CHECKING:
    from stimg.tl._domains import domains as domains
    from stimg.tl._embed import embed as embed
    from stimg.tl._pretrain import pretrain as pretrain
    from stimg.tl._reconstruct import reconstruct as reconstruct
