"""Train variants of the recipe alike on DLPFC and judge them; used by `units.py`, `channels.py` and `masking.py`.

Every variant is trained on 151673 and 151674 without their labels, for the same number of steps of about 16 x 16 x 16
sites, and judged on 151675: ARI of seven domains (`stimg.tl.domains`, mean over three seeds), k-NN in spatially blocked
folds, k-NN and logistic regression trained on either training section's labels and tested on 151675 (mean), and the
mean squared error of hidden regions (20 of 4 x 4 sites) on log-normalised expression of the selected genes. Cells are
means over training seeds with the half-width of their 95 % confidence interval (Student's t), which says nothing of
how sections or donors differ.
"""

from __future__ import annotations

import argparse
import json
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from dlpfc import SECTIONS, Sections, add_baselines, load_sections, training_patches
from scipy import stats

import stimg
from stimg._slide._values import log_normalise
from stimg.models import Model
from stimg.nn import Config

RESULTS = Path("benchmarks/results")
TEST = "151675"
SITES_A_STEP = 16 * 16 * 16


@dataclass(frozen=True)
class Variant:
    """What is changed against the default recipe."""

    config: Config = field(default_factory=Config)
    unit: str = "patch"
    patches: dict = field(default_factory=dict)


def train(sections: Sections, variant: Variant, *, steps: int, seed: int) -> Model:
    """Train one variant; batches hold the same number of sites whatever the window."""
    patches = training_patches(sections, TEST, **variant.patches)
    config = replace(variant.config, batch_size=max(1, SITES_A_STEP // patches.size**2))
    return stimg.tl.pretrain(
        patches, config, unit=variant.unit, max_epochs=steps, max_steps=steps, val_fraction=0, rng=seed
    )


def judge(sections: Sections, key: str) -> dict[str, float]:
    """Scores of the embedding `.obsm[key]` of the sections."""
    test = sections[TEST]
    labels = test.obs["domain"]
    found = []
    for seed in range(3):
        stimg.tl.domains(test, labels.nunique(), use_rep=key, rng=seed)
        found.append(stimg.metrics.domain_scores(labels, test.obs["stimg_domain"])["ari"])
    scores = {"ARI": np.mean(found)}
    for protocol in ("blocked", "paper"):
        probed = stimg.metrics.probe(test.obsm[key], labels, test.obsm["spatial"], method="knn", protocol=protocol)
        scores[f"{protocol} k-NN"] = probed["accuracy"]
    moved = f"{key}, shared" if f"{key}, shared" in test.obsm else key
    for method in ("knn", "logistic"):
        found = pd.DataFrame(
            stimg.metrics.transfer_probe(
                sections[name].obsm[moved], sections[name].obs["domain"], test.obsm[moved], labels, method=method
            )
            for name in SECTIONS
            if name != TEST
        )
        scores |= {f"across {method}": found["accuracy"].mean(), f"across {method} F1": found["macro_f1"].mean()}
    return scores


def hidden_error(sections: Sections, model: Model) -> float:
    """Mean squared error of hidden regions."""
    test = sections[TEST]
    judged = np.flatnonzero(test.var_names.isin(model.genes) & (test.var["stimg_weight"].to_numpy() > 0))
    hidden = stimg.metrics.hide_regions(test.obsm["lattice"], 4, n_regions=20, rng=0)
    truth = log_normalise(test.X, model.card["target_sum"])[:, judged][np.flatnonzero(hidden)]
    filled = stimg.tl.reconstruct(test, model, hidden=hidden, genes=test.var_names[judged], copy=True).obsm["stimg"]
    return stimg.metrics.reconstruction_scores(truth, filled[hidden])["mse"]


def compare(title: str, doc: str, variants: dict[str, Variant], *, baselines: bool = False) -> None:
    """Run every variant with every seed, and write table, figure and raw numbers under `RESULTS`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="these variants alone; the others are taken from the last run")
    args = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    raw = RESULTS / f"{title}.json"
    rows = json.loads(raw.read_text()) if args.only and raw.exists() else []
    rows = [row for row in rows if row["variant"] in variants and row["variant"] not in (args.only or ())]
    sections = load_sections()
    if baselines:
        add_baselines(sections)
        for key in ("PCA", "PCA + 18 nearest", "PCA 20 + rings"):
            rows.append({"variant": key, "seed": 0, **judge(sections, key)})
    for name, variant in variants.items():
        if args.only and name not in args.only:
            continue
        for seed in range(args.seeds):
            model = train(sections, variant, steps=args.steps, seed=seed)
            for section in sections.values():
                stimg.tl.embed(section, model)
            error = hidden_error(sections, model)
            rows.append({"variant": name, "seed": seed, **judge(sections, "X_stimg"), "hidden MSE": error})
            print(rows[-1], flush=True)
            raw.write_text(json.dumps(rows, indent=1) + "\n")
    order = [*dict.fromkeys(row["variant"] for row in rows if row["variant"] not in variants), *variants]
    rows.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
    raw.write_text(json.dumps(rows, indent=1) + "\n")
    write(title, doc, pd.DataFrame(rows).drop(columns="seed"), command=f"--steps {args.steps} --seeds {args.seeds}")


def write(title: str, doc: str, found: pd.DataFrame, *, command: str) -> None:
    """Write the table and the figure."""
    grouped = found.groupby("variant", sort=False)
    mean, n = grouped.mean(), grouped.size()
    half = grouped.std().mul(stats.t.ppf(0.975, (n - 1).clip(lower=1)) / np.sqrt(n), axis=0)
    cells = mean.map("{:.3f}".format) + half.map(lambda h: "" if np.isnan(h) else f" ± {h:.3f}")
    cells = cells.where(mean.notna(), "")
    cells.insert(0, "seeds", n)
    header, body = doc.split("\n", 1)
    text = f"# {header.rstrip('.')}\n\n`python benchmarks/{title}.py {command}` (stimg {stimg.__version__})\n"
    text += f"{body.split('python benchmarks', 1)[1].split(chr(10), 1)[1]}\n{__doc__.split(chr(10), 2)[2]}\n"
    text += f"{cells.reset_index().to_markdown(index=False)}\n\n![{header}]({title}.png)\n"
    (RESULTS / f"{title}.md").write_text(text)
    shown = ["ARI", "blocked k-NN", "across knn", "hidden MSE"]
    figure, axes = plt.subplots(1, len(shown), figsize=(11, 0.8 + 0.32 * len(mean)), sharey=True, layout="constrained")
    for axis, column in zip(axes, shown, strict=True):
        axis.errorbar(mean[column], range(len(mean)), xerr=half[column], fmt="o", color="#0072B2", capsize=3)
        axis.set(xlabel=column, yticks=range(len(mean)), yticklabels=mean.index)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.savefig(RESULTS / f"{title}.png", dpi=110)
    plt.close(figure)
