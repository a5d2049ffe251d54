"""Expression from H&E with a spatial embedding as a further target: does it help the genes?

    STIMG_DATA_DIR=../shared/data python benchmarks/expression_joint.py [--epochs 10] [--seeds 2] [--only NAME ...]

Slides, images, genes and scores of `expression.py`. "genes": `stimg.tl.train_expression` with its defaults. "genes and
embedding": the same network, steps and seeds also predict the 128 dimensions of a frozen spatial embedding of the
training spots (`.obsm["X_stimg"]`, standardised over the training spots) of a network pretrained on the expression of
the training slides, as further channels of the map with the weight of a gene each. Judged on the genes alone.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from align import embed
from expression import MPP, MPP_2K, RUNS, SCORES, read
from scipy import sparse

import stimg
from stimg._data._image_patches import ImageSlide
from stimg._data._spot_crops import z_scores

SHIFT = 6.0  # log-normalised values are not negative; standardised targets do not see it
NAMED = ("C2-C4 to C5-C6", "MOB")


def with_embedding(patches: Any) -> Any:
    """Append the slides' embeddings to the genes, as counts that have these values once log-normalised."""
    joined = z_scores(np.concatenate([slide.embedding for slide in patches.slides]))
    parts = np.split(np.clip(joined + SHIFT, 0, 2 * SHIFT), np.cumsum([len(s.centres) for s in patches.slides])[:-1])

    def appended(slide: ImageSlide, values: np.ndarray) -> ImageSlide:
        counts = np.expm1(values) * slide.totals[:, None] / patches.target_sum
        both = sparse.csr_array(sparse.hstack([slide.counts, counts]), dtype=np.float32)
        return replace(slide, counts=both, targets=np.hstack([slide.targets, values]).astype(np.float32))

    patches.slides = [appended(slide, values) for slide, values in zip(patches.slides, parts, strict=True)]
    patches.genes = np.concatenate([patches.genes, [f"embedding {i}" for i in range(joined.shape[1])]])
    return patches


def run(name: str, epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Train on some slides with and without the embedding, predict others."""
    (train, train_images), (test, test_images) = read(RUNS[name][0]), read(RUNS[name][1])
    mpp = None
    if name == "MOB":
        shared = sorted(set.intersection(*(set(slide.var_names) for slide in (*train, *test))))
        train, mpp = [slide[:, shared].copy() for slide in train], MPP_2K
    embed(train, test)
    options: dict[str, Any] = {"mpp": MPP, "image_mpp": mpp, "stride": 256, "use_rep": "X_stimg"}
    genes = stimg.pp.to_image_patches(train, train_images, **options).genes
    judged = stimg.pp.to_image_patches(test, test_images, mpp=MPP, genes=list(genes)).slides
    truth = np.concatenate([slide.targets for slide in judged])
    rows = []
    for method in ("genes", "genes and embedding"):
        for seed in range(seeds):
            patches = stimg.pp.to_image_patches(train, train_images, **options)
            if method != "genes":
                patches = with_embedding(patches)
            started = time.perf_counter()
            model = stimg.tl.train_expression(patches, max_epochs=epochs, device="cpu", rng=seed)
            seconds = time.perf_counter() - started
            found = []
            for table, image, slide in zip(test, test_images, judged, strict=True):
                stimg.tl.predict_expression(table, model, image)
                found.append(table.obsm["stimg_image"].iloc[slide.obs_index][genes].to_numpy())
            scores = stimg.metrics.expression_scores(truth, np.concatenate(found))
            scores = {key: scores[key] for key in SCORES}
            rows.append({"run": name, "method": method, **scores, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=list(NAMED))
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    found = pd.DataFrame([row for name in args.only for row in run(name, args.epochs, args.seeds)])
    grouped = found.groupby(["run", "method"], sort=False)
    table = grouped.mean().map("{:.3f}".format)
    if args.seeds > 1:
        table += grouped.std().map(" ± {:.3f}".format).assign(seconds="")
    table = table.reset_index()
    command = f"python benchmarks/expression_joint.py --epochs {args.epochs} --seeds {args.seeds} --only "
    command += " ".join(f'"{name}"' for name in args.only)
    text = f"# A spatial embedding as a further target of H&E\n\n`{command}` (stimg {stimg.__version__})\n\n"
    text += __doc__.split("\n", 4)[4] + f"\n{table.to_markdown(index=False)}\n"
    Path("benchmarks/results/expression_joint.md").write_text(text)


if __name__ == "__main__":
    main()
