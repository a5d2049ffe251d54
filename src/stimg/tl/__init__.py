"""Pretrain, embed, find domains, reconstruct expression, predict it from H&E."""

from typing import TYPE_CHECKING

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "_retrieve": ["retrieve"],
        "_retrieve_expression": ["retrieve_expression"],
        "_embed_pairs": ["embed_pairs"],
        "_align": ["align"],
        "_domains": ["domains"],
        "_embed": ["embed"],
        "_predict_expression": ["predict_expression"],
        "_pretrain": ["pretrain"],
        "_reconstruct": ["reconstruct"],
        "_train_expression": ["train_expression"],
    },
)

if TYPE_CHECKING:
    from stimg.tl._align import align as align
    from stimg.tl._domains import domains as domains
    from stimg.tl._embed import embed as embed
    from stimg.tl._embed_pairs import embed_pairs as embed_pairs
    from stimg.tl._predict_expression import predict_expression as predict_expression
    from stimg.tl._pretrain import pretrain as pretrain
    from stimg.tl._reconstruct import reconstruct as reconstruct
    from stimg.tl._retrieve import retrieve as retrieve
    from stimg.tl._retrieve_expression import retrieve_expression as retrieve_expression
    from stimg.tl._train_expression import train_expression as train_expression
