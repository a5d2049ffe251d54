"""The number of domains that `n_domains="auto"` chooses, against the number that experts drew.

    STIMG_DATA_DIR=../shared/data python benchmarks/auto_number.py keep before.json
    STIMG_DATA_DIR=../shared/data python benchmarks/auto_number.py keep after.json
    python benchmarks/auto_number.py compare before.json after.json

`keep` embeds labelled slides with the bundled weights (which learned the labels of most of them), lets the installed
version of stimg choose between 3 and 12 domains, and writes what came; `compare` writes the table of two versions. ARI
is that with the experts' labels, of as many domains as chosen ("auto") and as labelled ("known"). Seconds are those of
the processor, for the choice and the domains.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from pathlib import Path

import anndata
import pandas as pd

import stimg

SLIDES = (
    "dlpfc/151673",
    "dlpfc/151675",
    "her2st/A1",
    "her2st/E1",
    "mob_st/MOB_rep11",
    "heart_st/5_CN74_E1_HE",
    "heart_st/6_CN74_E2_HE",
    "starmap_mpfc/20180419_BZ9_control",
)


def judge(name: str) -> dict:
    """What is chosen for a slide, and how well the domains agree with its labels."""
    slide = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"{name}.h5ad")
    slide.var_names_make_unique()
    labels = slide.obs["domain"]
    stimg.pp.to_lattice(slide)
    stimg.tl.embed(slide)
    started = time.process_time()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stimg.tl.domains(slide, "auto")
    seconds = time.process_time() - started
    stimg.tl.domains(slide, int(labels.nunique()), key_added="known")
    ari = {key: stimg.metrics.domain_scores(labels, slide.obs[key])["ari"] for key in ("stimg_domain", "known")}
    return {
        "slide": name,
        "spots": slide.n_obs,
        "labelled": int(labels.nunique()),
        "chosen": int(slide.obs["stimg_domain"].nunique()),
        "ARI, auto": ari["stimg_domain"],
        "ARI, known": ari["known"],
        "seconds": seconds,
        "warnings": len(told),
    }


def main() -> None:
    """Judge the slides, or write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("keep", "compare"))
    parser.add_argument("files", nargs="+", type=Path)
    args = parser.parse_args()
    if args.what == "keep":
        rows = []
        for name in SLIDES:
            rows.append(judge(name))
            print(rows[-1], flush=True)
            args.files[0].write_text(json.dumps(rows, indent=2))
        return
    before, after = (pd.DataFrame(json.loads(path.read_text())).set_index("slide") for path in args.files)
    table = after[["spots", "labelled"]].copy()
    for column, digits in {"chosen": 0, "ARI, auto": 3, "ARI, known": 3, "seconds": 1}.items():
        if column != "ARI, known":
            table[f"{column}, before"] = before[column].round(digits)
        table[column] = after[column].round(digits)
    mean = table.mean().round(2).rename("mean")
    command = f"python benchmarks/auto_number.py compare {' '.join(path.name for path in args.files)}"
    text = f"# The number of domains, chosen\n\n`{command}` (stimg {stimg.__version__})\n\n"
    text += __doc__.split(chr(10), 6)[6] + "\n"
    text += pd.concat([table.astype(object), mean.to_frame().T]).to_markdown() + "\n"
    (Path(__file__).parent / "results" / "auto_number.md").write_text(text)


if __name__ == "__main__":
    main()
