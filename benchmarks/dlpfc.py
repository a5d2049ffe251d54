"""Domains and probes on DLPFC: train on two sections, judge on the third, for each of the three.

    STIMG_DATA_DIR=../shared/data python benchmarks/dlpfc.py [--config tiny] [--max-epochs 20] [--train-seeds 3]

Every method sees the judged section's expression but not its labels. Methods: principal components (30, z-scored 2,000
highly variable genes), the same averaged over the 18 nearest spots, 20 components with their means over rings of 1, 2
and 3 pitches, the network untrained (random tables), the network untrained but started from gene programs, the trained
network, and the network trained with the expert labels of the two other sections as well (of the same donor); "joined"
is `.obsm["X_stimg_slide"]`. Scores: Gaussian mixture with tied covariance on at most 15 components, 7 domains, mean
over 5 seeds of the mixture; k-NN (k = 15) in spatially blocked folds; k-NN trained on each of the two other sections
and tested on the judged one. Rows of networks are means over the training seeds; "ARI sd" is the standard deviation
over all mixtures of all training seeds. Peers are trained on the judged section itself by `peers/run.py` and taken from
`peers/out/` where they are; "own ARI" is that of their own clustering.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from baselines import add_shared_baselines, near_means, ring_means
from sklearn.decomposition import PCA

import stimg
from stimg._train._pretrain import gene_programs
from stimg.models import Model
from stimg.nn import GeneMAE, get_config
from stimg.pp import PatchDataset

SECTIONS = ("151673", "151674", "151675")
N_DOMAINS = 7
MIXTURES = 5
WEIGHTS = Path("benchmarks/weights")
PEERS = Path("benchmarks/peers/out")

Sections = dict[str, AnnData]


def load_sections() -> Sections:
    """Read the three sections, on their lattices, with 2,000 genes selected each."""
    sections = {name: stimg.datasets.dlpfc(name) for name in SECTIONS}
    for section in sections.values():
        stimg.pp.to_lattice(section)
        stimg.pp.select_genes(section, n_genes=2000)
    return sections


def training_patches(sections: Sections, test: str, **options: object) -> PatchDataset:
    """Patches of the sections that are not judged."""
    train = [name for name in SECTIONS if name != test]
    return stimg.pp.to_patches([sections[name] for name in train], names=train, **options)


def trained_model(
    sections: Sections, test: str, *, config: str, max_epochs: int, seed: int, labels: bool = False
) -> Model:
    """Train on the other sections, with or without their labels, or read what an earlier run trained."""
    name = f"{stimg.__version__}-{config}-{max_epochs}-without-{test}{'-labels' if labels else ''}-seed{seed}"
    path = WEIGHTS / f"{name}.safetensors"
    if not path.exists():
        WEIGHTS.mkdir(exist_ok=True)
        patches = training_patches(sections, test, label_key="domain" if labels else None)
        stimg.tl.pretrain(patches, get_config(config), max_epochs=max_epochs, rng=seed).save(path)
    return Model.load(path)


def untrained(model: Model, patches: PatchDataset, *, programs: bool) -> Model:
    """Return the same network before its first step: with random gene tables, or started from gene programs."""
    torch.manual_seed(model.card["seed"])
    network = GeneMAE(model.config, len(model.genes)).eval()
    if programs:
        network.start_from_programs(*map(torch.from_numpy, gene_programs(patches, model.config.dim // 2)))
    return replace(model, network=network)


def add_baselines(sections: Sections) -> None:
    """Write the components of every section by itself, and for transfer those fitted on all of them together."""
    for section in sections.values():
        array = stimg.pp.to_patches(section, size=4, min_tissue=0.0).slides[0]
        values = array.standardise(array.expression.toarray(), np.arange(len(array.genes)))[array.obs_site]
        section.obsm["PCA"] = PCA(30, random_state=0).fit_transform(values)
        section.obsm["PCA + 18 nearest"] = near_means(section.obsm["PCA"], section)
        section.obsm["PCA 20 + rings"] = ring_means(section.obsm["PCA"][:, :20], section)
    add_shared_baselines(list(sections.values()))


def judge(sections: Sections, test: str, key: str, *, transfer: str | None = None) -> list[dict]:
    """Scores of the embedding `.obsm[key]` on the judged section, a row a mixture; `transfer` names another one.

    Without transfer scores where the other sections lack that embedding.
    """
    section, transfer = sections[test], transfer or key
    labels = section.obs["domain"]
    scores = {"section": test, "method": key}
    blocked = stimg.metrics.probe(section.obsm[key], labels, section.obsm["spatial"], method="knn", protocol="blocked")
    others = [sections[name] for name in SECTIONS if name != test]
    moved = [
        stimg.metrics.transfer_probe(
            other.obsm[transfer], other.obs["domain"], section.obsm[transfer], labels, method="knn"
        )
        for other in others
        if transfer in other.obsm
    ]
    scores["blocked k-NN"] = blocked["accuracy"]
    scores["transfer k-NN"] = np.mean([one["accuracy"] for one in moved]) if moved else np.nan
    rows = []
    for seed in range(MIXTURES):
        stimg.tl.domains(section, N_DOMAINS, use_rep=key, rng=seed)
        found = stimg.metrics.domain_scores(labels, section.obs["stimg_domain"])
        rows.append({**scores, "ARI": found["ari"], "NMI": found["nmi"], "accuracy": found["accuracy"]})
    return rows


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--train-seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dlpfc.md"))
    args = parser.parse_args()
    sections = load_sections()
    add_baselines(sections)
    rows = []
    for test in SECTIONS:
        for key in ("PCA", "PCA + 18 nearest", "PCA 20 + rings"):
            rows += judge(sections, test, key, transfer=f"{key}, shared")
        for path in sorted(PEERS.glob(f"*/dlpfc-{test}/*.npz")):
            with np.load(path) as found:
                sections[test].obsm["peer"] = found["embedding"]
                own = {}
                if "labels" in found:
                    scores = stimg.metrics.domain_scores(sections[test].obs["domain"], found["labels"])
                    own = {"own ARI": scores["ari"]}
            judged = judge(sections, test, "peer")
            del sections[test].obsm["peer"]
            rows += [{**row, **own, "method": path.parts[-3]} for row in judged]
        patches = training_patches(sections, test)
        for seed in range(args.train_seeds):
            options = {"config": args.config, "max_epochs": args.max_epochs, "seed": seed}
            model = trained_model(sections, test, **options)
            models = {
                "untrained": untrained(model, patches, programs=False),
                "untrained + programs": untrained(model, patches, programs=True),
                "trained": model,
                "trained with labels": trained_model(sections, test, labels=True, **options),
            }
            for key, candidate in models.items():
                for section in sections.values():
                    stimg.tl.embed(section, candidate, key_added=key)
                for found, moved in ((key, key), (f"{key}_slide", key)) if key.startswith("trained") else ((key, key),):
                    judged = judge(sections, test, found, transfer=moved)
                    name = key if found == key else f"{key}, joined"
                    rows += [{**row, "method": name, "training seed": seed} for row in judged]
                    print(pd.DataFrame(judged).mean(numeric_only=True).round(3).to_dict(), name, test, flush=True)
    found = pd.DataFrame(rows)
    columns = ["ARI", "NMI", "accuracy", "blocked k-NN", "transfer k-NN"]
    columns += ["own ARI"] if "own ARI" in found else []
    grouped = found.groupby(["section", "method"], sort=False)
    table = grouped[columns].mean()
    table.insert(1, "ARI sd", grouped["ARI"].std())
    counts = table.groupby("method", sort=False).size()
    mean = table.groupby("method", sort=False).mean()[counts == len(SECTIONS)]
    table = pd.concat([table.reset_index(), mean.reset_index().assign(section="mean")])[["section", "method", *table]]
    seeds = found.dropna(subset="training seed").groupby(["method", "training seed"], sort=False)[columns[:5]].mean()
    command = f"python benchmarks/dlpfc.py --config {args.config} --max-epochs {args.max_epochs}"
    text = (
        f"# DLPFC, leave one section out\n\n`{command} --train-seeds {args.train_seeds}` (stimg {stimg.__version__})\n"
    )
    text += f"\n{__doc__.split(chr(10), 4)[4]}\n{table.round(3).to_markdown(index=False)}\n"
    text += (
        f"\nMean of the three sections by training seed:\n\n{seeds.reset_index().round(3).to_markdown(index=False)}\n"
    )
    args.out.write_text(text)


if __name__ == "__main__":
    main()
