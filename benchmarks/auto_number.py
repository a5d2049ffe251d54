"""The number of domains that `n_domains="auto"` chooses, against the number that experts drew, or that is true.

    STIMG_DATA_DIR=../shared/data python benchmarks/auto_number.py

Labelled slides are embedded with the bundled weights (which learned the labels of those that are not held out).
Synthetic slides of 3, 5 and 8 domains are embedded by a network that was trained on them for 100 steps (a few seconds),
and by scanpy's principal components. Candidates are 2 to 12. "Same number alone" is the earlier rule, on the same runs:
the smallest of the numbers whose runs agree best with each other, without a comparison with one domain more. ARI is
that with the experts' labels, of as many domains as chosen and as labelled ("known"). Seconds are those of the
processor, for the choice and the domains.
"""

from __future__ import annotations

import argparse
import os
import time
import tomllib
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc

import stimg

HERE = Path(__file__).parent
CANDIDATES = range(2, 13)
REAL = (
    "dlpfc/151673",
    "dlpfc/151675",
    "her2st/A1",
    "her2st/E1",
    "mob_st/MOB_rep11",
    "heart_st/5_CN74_E1_HE",
    "heart_st/6_CN74_E2_HE",
    "starmap_mpfc/20180419_BZ9_control",
)
SYNTHETIC = (("visium", 1000, 0), ("visium_hd", 1500, 1), ("xenium", 1000, 2))
TRUE = (3, 5, 8)
CONFIG = stimg.nn.Config(dim=64, encoder_layers=2, heads=4, n_programs=16)
STEPS = 100
EQUAL = 0.03


def same_alone(record: dict) -> int:
    """The number that the earlier rule takes: the smallest whose runs agree as well as the best, within the error."""
    same = record["same"]
    behind = same[same.mean(1).argmax()] - same
    error = np.maximum(2 * behind.std(1, ddof=1) / np.sqrt(same.shape[1]), EQUAL)
    return int(record["candidates"][(behind.mean(1) <= error).argmax()])


def choose(slide: anndata.AnnData, use_rep: str) -> dict:
    """What `"auto"` takes, and says."""
    started = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stimg.tl.domains(slide, "auto", candidates=CANDIDATES, use_rep=use_rep)
    record = slide.uns["stimg"]["domains"]["stability"]
    return {
        "same number alone": same_alone(record),
        "chosen": record["chosen"],
        "runner-up": record["runner_up"],
        "curve": record["mean"].round(3).tolist(),
        "score": record["mean"][record["candidates"] == record["chosen"]].item(),
        "seconds": time.process_time() - started,
        "warnings": len(told),
    }


def judge_real(name: str, held_out: bool) -> dict:
    """What is chosen for a labelled slide, and how well its domains agree with the labels."""
    slide = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"{name}.h5ad")
    slide.var_names_make_unique()
    labels = slide.obs["domain"]
    stimg.pp.to_lattice(slide)
    stimg.tl.embed(slide)
    found = choose(slide, "X_stimg_slide")
    ari = {}
    for key, number in (("same number alone", found["same number alone"]), ("known", int(labels.nunique()))):
        stimg.tl.domains(slide, number, key_added="given")
        ari[f"ARI, {key}"] = stimg.metrics.domain_scores(labels, slide.obs["given"])["ari"]
    ari["ARI, chosen"] = stimg.metrics.domain_scores(labels, slide.obs["stimg_domain"])["ari"]
    about = {"slide": name, "held out": "yes" if held_out else "", "spots": slide.n_obs, "labelled": labels.nunique()}
    row = about | found | ari
    print(row, flush=True)
    return row


def judge_synthetic(platform: str, n_obs: int, seed: int, true: int) -> list[dict]:
    """What is chosen for a synthetic slide in each embedding."""
    slide = stimg.datasets.synthetic(platform, n_domains=true, n_obs=n_obs, seed=seed)
    stimg.pp.to_lattice(slide, platform)
    stimg.pp.select_genes(slide)
    model = stimg.tl.pretrain(stimg.pp.to_patches(slide, size=8, n_channels=64), CONFIG, max_steps=STEPS)
    stimg.tl.embed(slide, model)
    logged = slide.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.pp.pca(logged)
    slide.obsm["X_pca"] = logged.obsm["X_pca"]
    rows = []
    for use_rep in ("X_stimg_slide", "X_stimg", "X_pca"):
        found = choose(slide, use_rep)
        stimg.tl.domains(slide, true, use_rep=use_rep, key_added="given")
        known = stimg.metrics.domain_scores(slide.obs["domain"], slide.obs["given"])["ari"]
        about = {"platform": platform, "spots": n_obs, "seed": seed, "embedding": use_rep, "true": true}
        rows.append(about | found | {"ARI, known": known})
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict], digits: dict[str, int]) -> pd.DataFrame:
    """Rounded, without the curves, and with the number of warnings only if there are any."""
    found = pd.DataFrame(rows)
    return found.round(digits).drop(columns=["curve"] if found["warnings"].any() else ["curve", "warnings"])


def write(rows: list[dict], made: list[dict]) -> None:
    """Write the tables of labelled and of synthetic slides."""
    digits = {"score": 2, "seconds": 1, "ARI, same number alone": 3, "ARI, chosen": 3, "ARI, known": 3}
    real, synthetic = pd.DataFrame(rows), pd.DataFrame(made)
    columns = [name for name in real if name.startswith("ARI")]
    means = {
        who: ", ".join(f"{name.removeprefix('ARI, ')} {value:.2f}" for name, value in part[columns].mean().items())
        for who, part in (("all", real), ("held-out", real[real["held out"] == "yes"]))
    }
    right = [
        f"`{use_rep}` {(part['chosen'] == part['true']).sum()} of {len(part)} "
        f"(same number alone: {(part['same number alone'] == part['true']).sum()})"
        for use_rep, part in synthetic.groupby("embedding", sort=False)
    ]
    text = f"# The number of domains, chosen\n\n`python benchmarks/auto_number.py` (stimg {stimg.__version__})\n\n"
    text += __doc__.split("\n", 4)[4] + "\n"
    text += table(rows, digits).to_markdown(index=False) + "\n\n"
    text += "\n".join(f"Mean ARI of {who} slides: {said}.\n" for who, said in means.items()) + "\n"
    text += f"## Synthetic slides\n\nThe true number was taken with {'; '.join(right)}.\n\n"
    text += table(made, digits).to_markdown(index=False) + "\n"
    (HERE / "results" / "auto_number.md").write_text(text)


def main() -> None:
    """Judge all slides and write the tables."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    split = tomllib.loads((HERE / "pretrain" / "slides.toml").read_text())["slide"]
    held_out = {slide["file"] for slide in split if slide.get("held_out")}
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as processes:
        asked = [processes.submit(judge_real, name, name in held_out) for name in REAL]
        drawn = [processes.submit(judge_synthetic, *case, true) for case in SYNTHETIC for true in TRUE]
        write([one.result() for one in asked], [row for one in drawn for row in one.result()])


if __name__ == "__main__":
    main()
