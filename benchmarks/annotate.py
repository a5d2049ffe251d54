"""Names of regions: held-out sections, foreign tissue, and cohorts with one annotated section.

    STIMG_DATA_DIR=../shared/data python benchmarks/annotate.py held_out benchmarks/weights/tiny-judged.safetensors
    STIMG_DATA_DIR=../shared/data python benchmarks/annotate.py foreign benchmarks/weights/tiny-judged.safetensors
    STIMG_DATA_DIR=../shared/data python benchmarks/annotate.py crops benchmarks/weights/tiny-validation.safetensors
    STIMG_DATA_DIR=../shared/data python benchmarks/annotate.py cohorts benchmarks/weights/tiny-unlabelled.safetensors

Each part keeps its rows in `benchmarks/results/annotate.json`, and all are written to `annotate.md`.

**Held-out sections.** The weights learned the labels of other slides of the tissue (`slides.toml`) and never saw these.
"stimg" is `stimg.tl.annotate` by the model alone. Beside it, k-NN (k = 15) carries the labels of the same training
slides over, on `X_stimg`, and on components of these slides and the section together, averaged over the 18 nearest
spots. For accuracy and macro-F1 every spot is named (`min_confidence=0`). ECE is the expected calibration error of the
confidence in ten bins, of all spots or of those that are named. "named" is the share of spots that `annotate` names by
its default, and "right" how many of these are right. Breast cancer of other patients is not recognised: nothing is
named by default, and its confidence is low on purpose, even where guesses are right.

**Foreign tissue.** The same weights on all slides of tissues that they have no labels of, with the correlation of mean
expression by which the tissue is recognised, and the share of spots that get a name (confidence above 0.5).

**Crops.** Parts of section 151674, cut to some of its layers, are named by weights that learned the labels of 151673
("stimg"), from 151673 as `reference`, and by k-NN on `X_stimg`. That a section is also scaled by the labelled ones was
chosen on these crops and on whole sections of the validation split.

**Cohorts.** Every labelled section is named from each other one of its data set. The weights were trained without any
labels (`train.py judged --label-loss 0`). "stimg, reference" is `annotate(reference=...)`; "stimg, trained on it" is
`pretrain(init=...)` for a minute on the annotated section, then `annotate`; "stimg, both" passes that section as
`reference` to the model trained on it. Beside them: scanpy's `ingest`, logistic
regression on scaled log-normalised expression of all shared genes as in CellTypist, and k-NN as above. Sections
marked * were used to choose features and penalty.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier

import stimg
from stimg._apply._names import EVEN_ODDS
from stimg.models import Model

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parent / "pretrain"))
from baselines import add_shared_baselines
from train import SPLITS, read_slides, split_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "annotate.json"
BLURRED = "PCA + 18 nearest, shared"
COHORTS = {
    "dlpfc": ("151673*", "151674*", "151675"),
    "heart_st": ("1_CN73_E1_HE*", "2_CN73_E2_HE_*", "3_CN73_D2_HE*", "4_CN73_C2_HE*", "5_CN74_E1_HE", "6_CN74_E2_HE"),
    "mob_st": ("MOB_rep1*", "MOB_rep2*", "MOB_rep11"),
    "starmap_mpfc": ("20180417_BZ5_control", "20180419_BZ9_control"),
}


def scores(names: np.ndarray, truth: pd.Series, confidence: np.ndarray | None = None) -> dict[str, float]:
    """Accuracy, macro-F1 and calibration of names, over the spots that have a label."""
    known = truth.notna().to_numpy()
    names, labels = np.asarray(names).astype(str)[known], truth[known].astype(str).to_numpy()
    found = {"accuracy": np.mean(names == labels)}
    found["macro-F1"] = f1_score(labels, names, average="macro", labels=np.unique(labels))
    if confidence is not None:
        found["ECE"] = calibration_error(confidence[known], names == labels)
    return found


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Mean difference between confidence and accuracy over bins of confidence, weighted by their size."""
    where = np.clip((confidence * bins).astype(int), 0, bins - 1)
    parts = [(where == k) for k in range(bins)]
    return float(sum(abs(confidence[part].mean() - right[part].mean()) * part.mean() for part in parts if part.any()))


def stimg_scores(slide: AnnData, model: Model, **options: object) -> dict[str, float]:
    """Name all spots, and then by default; the model may have learned names, or a `reference` be given."""
    stimg.tl.annotate(slide, model, min_confidence=0, **options)
    confidence = slide.obs["stimg_label_confidence"].to_numpy()
    found = scores(slide.obs["stimg_label"], slide.obs["domain"], confidence)
    known = slide.obs["domain"].notna().to_numpy()
    named = (confidence > 0.5) & known
    right = slide.obs["stimg_label"].astype(str).to_numpy() == slide.obs["domain"].astype(str).to_numpy()
    similarity = float(np.mean(slide.uns["stimg"]["annotate"]["similarity"]))
    found |= {"named": named.sum() / known.sum(), "right": right[named].mean() if named.any() else np.nan}
    if named.any():
        found["ECE, named"] = calibration_error(confidence[named], right[named])
    return found | {"similarity": similarity}


def carried(slide: AnnData, sources: list[AnnData], key: str) -> dict[str, float]:
    """Carry labels over by k-NN on `.obsm[key]`."""
    values = np.concatenate([source.obsm[key][source.obs["domain"].notna()] for source in sources])
    labels = np.concatenate([source.obs["domain"].dropna().astype(str) for source in sources])
    fitted = KNeighborsClassifier(min(15, len(labels))).fit(values, labels)
    return scores(fitted.predict(slide.obsm[key]), slide.obs["domain"])


def held_out(model: Model) -> Iterator[dict]:
    """Name the held-out sections of tissues with labels."""
    entries = [entry for entry in read_slides(*SPLITS) if entry.get("labels")]
    for entry in entries:
        sources = [
            other["adata"] for other in entries if other["tissue"] == entry["tissue"] and split_of(other) != "held_out"
        ]
        if split_of(entry) != "held_out" or not sources:
            continue
        slide = entry["adata"]
        row = {"part": "held_out", "slide": entry["file"]}
        yield row | {"method": "stimg"} | stimg_scores(slide, model, labels=entry["tissue"])
        for table in (slide, *sources):
            stimg.tl.embed(table, model)
        yield row | {"method": "k-NN, X_stimg"} | carried(slide, sources, "X_stimg")
        add_shared_baselines([slide, *sources])
        yield row | {"method": "k-NN, joint PCA + blur"} | carried(slide, sources, BLURRED)


def foreign(model: Model) -> Iterator[dict]:
    """Name the slides of tissues that have no labels."""
    root = Path(os.environ["STIMG_DATA_DIR"])
    labelled = {entry["file"] for entry in entries() if entry.get("labels")}
    tissues = {entry["file"]: entry["tissue"] for entry in entries()}
    known = {entry["tissue"] for entry in entries() if entry.get("labels")}
    for path in sorted(root.glob("*/*.h5ad")):
        name = f"{path.parent.name}/{path.stem}"
        if name in labelled or tissues.get(name) in known or path.parent.name in ("dlpfc", "mob_st"):
            continue
        slide = anndata.read_h5ad(path)
        slide.var_names_make_unique()
        stimg.pp.to_lattice(slide)
        try:
            stimg.tl.annotate(slide, model)
        except ValueError as error:  # too few genes of the model
            print(name, error)
            continue
        record = slide.uns["stimg"]["annotate"]
        row = {"part": "foreign", "slide": name, "nearest tissue": record["tissue"][0]}
        yield row | {
            "similarity": record["similarity"][0],
            "named": float((slide.obs["stimg_label"] != "unknown").mean()),
        }


def crops(model: Model) -> Iterator[dict]:
    """Name parts of a section from another one."""
    whole, known = (anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / f"dlpfc/{n}.h5ad") for n in (151674, 151673))
    stimg.pp.to_lattice(known)
    stimg.tl.embed(known, model)
    for layers in (list(whole.obs["domain"].cat.categories), ["L1", "L2", "L3"], ["L6", "WM"], ["L3"], ["WM"]):
        slide = whole[whole.obs["domain"].isin(layers)].copy()
        stimg.pp.to_lattice(slide)
        stimg.tl.embed(slide, model)
        row = {"part": "crops", "slide": ", ".join(layers)}
        yield row | {"method": "stimg"} | stimg_scores(slide, model)
        yield row | {"method": "stimg, reference"} | stimg_scores(slide, model, reference=known, label_key="domain")
        yield row | {"method": "k-NN, X_stimg"} | carried(slide, [known], "X_stimg")


def entries() -> list[dict]:
    """Return the entries of the split."""
    return tomllib.loads((HERE / "pretrain" / "slides.toml").read_text())["slide"]


def normalised(slide: AnnData, genes: pd.Index) -> AnnData:
    """Return log-normalised expression of some genes, with the labels."""
    found = AnnData(slide.X.astype(np.float32), obs=slide.obs[["domain"]].copy(), var=slide.var[[]])
    sc.pp.normalize_total(found, target_sum=1e4)
    sc.pp.log1p(found)
    return found[:, genes].copy()


def ingest(slide: AnnData, source: AnnData) -> np.ndarray:
    """Name spots by scanpy's `ingest`."""
    genes = slide.var_names[slide.var_names.isin(source.var_names)]
    known, new = normalised(source, genes), normalised(slide, genes)
    known = known[known.obs["domain"].notna()].copy()
    known.obs["domain"] = known.obs["domain"].cat.remove_unused_categories()
    sc.pp.pca(known)
    sc.pp.neighbors(known)
    del new.obs["domain"]
    sc.tl.ingest(new, known, obs="domain", embedding_method="pca")
    return new.obs["domain"].to_numpy()


def regression(slide: AnnData, source: AnnData) -> np.ndarray:
    """Name spots by logistic regression on expression, scaled by the annotated section and clipped, as CellTypist."""
    genes = slide.var_names[slide.var_names.isin(source.var_names)]
    known, new = normalised(source, genes), normalised(slide, genes)
    known = known[known.obs["domain"].notna()]
    values = known.X.toarray()
    mean, std = values.mean(0), values.std(0)
    scale = np.where(std > 0, std, np.inf)
    fitted = LogisticRegression(C=1.0, max_iter=1000).fit(
        np.minimum((values - mean) / scale, 10), known.obs["domain"].astype(str)
    )
    return fitted.predict(np.minimum((new.X.toarray() - mean) / scale, 10))


def cohorts(model: Model) -> Iterator[dict]:
    """Name every section of a data set from each other one."""
    for folder, names in COHORTS.items():
        slides = {}
        for name in names:
            slide = anndata.read_h5ad(Path(os.environ["STIMG_DATA_DIR"]) / folder / f"{name.rstrip('*')}.h5ad")
            slide.var_names_make_unique()
            stimg.pp.to_lattice(slide)
            stimg.pp.select_genes(slide, n_genes=min(2000, slide.n_vars))
            stimg.tl.embed(slide, model)
            slides[name] = slide
        add_shared_baselines(list(slides.values()))
        for source, known in slides.items():
            started = time.perf_counter()
            patches = stimg.pp.to_patches(known, label_key="domain", min_tissue=0.2)
            limit = {"max_epochs": 1000, "max_time": timedelta(seconds=60), "val_fraction": 0}
            trained = stimg.tl.pretrain(patches, replace(model.config, label_loss=1.0), init=model, **limit)
            seconds = time.perf_counter() - started
            for name, slide in slides.items():
                if name == source:
                    continue
                row = {"part": "cohorts", "cohort": folder, "slide": name, "source": source}
                found: dict[str, Callable[[], dict]] = {
                    "stimg, reference": lambda: stimg_scores(slide, model, reference=known, label_key="domain"),  # noqa: B023
                    "stimg, trained on it": lambda: stimg_scores(slide, trained) | {"seconds": seconds},  # noqa: B023
                    "stimg, both": lambda: stimg_scores(slide, trained, reference=known, label_key="domain"),  # noqa: B023
                    "k-NN, X_stimg": lambda: carried(slide, [known], "X_stimg"),  # noqa: B023
                    "k-NN, joint PCA + blur": lambda: carried(slide, [known], BLURRED),  # noqa: B023
                    "scanpy ingest": lambda: scores(ingest(slide, known), slide.obs["domain"]),  # noqa: B023
                    "regression on expression": lambda: scores(regression(slide, known), slide.obs["domain"]),  # noqa: B023
                }
                for method, run in found.items():
                    yield row | {"method": method} | run()


def main() -> None:
    """Run a part, keep its rows, and write all tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("held_out", "foreign", "crops", "cohorts"))
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    rows = []
    for row in {"held_out": held_out, "foreign": foreign, "crops": crops, "cohorts": cohorts}[args.part](
        Model.load(args.weights)
    ):
        rows.append(row | {"weights": args.weights.name})
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    rows = [row for row in kept if row["part"] != args.part] + rows
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    write(pd.DataFrame(rows))


def write(rows: pd.DataFrame) -> None:
    """Write the tables of all parts."""
    text = f"# Names of regions\n\n{__doc__.split(chr(10), 2)[2]}\n(stimg {stimg.__version__})\n"
    sections = text.split("\n**")
    tables = dict.fromkeys(("held_out", "foreign", "crops", "cohorts"), "")
    for part, own in rows.groupby("part"):
        own = own.dropna(axis=1, how="all").drop(columns=["part", "weights"])
        if part == "held_out":
            recognised = own["slide"].isin(own.loc[own["similarity"] > EVEN_ODDS, "slide"])
            means = [
                part.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(slide=name)
                for name, part in (("mean", own), ("mean of those recognised", own[recognised]))
            ]
            own = pd.concat([own, *means])
        elif part == "foreign":
            own = pd.concat([own, own.mean(numeric_only=True).to_frame().T.assign(slide="mean")])
        elif part == "cohorts":
            own = own.groupby(["cohort", "method"], sort=False).mean(numeric_only=True).reset_index()
            mean = own.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(cohort="mean")
            own = pd.concat([own, mean])
        tables[str(part)] = own.round(3).to_markdown(index=False)
    (HERE / "results" / "annotate.md").write_text(
        "\n".join(
            [sections[0], *(f"**{body}\n\n{tables[key]}\n" for body, key in zip(sections[1:], tables, strict=True))]
        )
    )


if __name__ == "__main__":
    main()
