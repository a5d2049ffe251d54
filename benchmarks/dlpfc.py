"""Domains and probes on DLPFC: train on two sections, judge on the third, for each of the three.

    STIMG_DATA_DIR=../shared/data python benchmarks/dlpfc.py [--max-epochs 20] [--out benchmarks/results/dlpfc.md]

Every method sees the judged section's expression but not its labels. Rows: principal components (30, z-scored 2,000
highly variable genes), the same averaged over the 18 nearest spots, the network untrained (random tables), the network
untrained but started from gene programs, and the trained network. Columns: Gaussian mixture with tied covariance on at
most 15 components, 7 domains, mean and standard deviation over 5 seeds; k-NN (k = 15) in spatially blocked folds; k-NN
trained on each of the two other sections and tested on the judged one.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

import stimg
from stimg.models import Model
from stimg.nn import GeneMAE, get_config

SECTIONS = ("151673", "151674", "151675")
N_DOMAINS = 7
SEEDS = 5


def load_sections() -> dict:
    """Read the three sections, on their lattices, with 2,000 genes selected each."""
    sections = {name: stimg.datasets.dlpfc(name) for name in SECTIONS}
    for section in sections.values():
        stimg.pp.to_lattice(section)
        stimg.pp.select_genes(section, n_genes=2000)
    return sections


def add_baselines(section) -> None:
    """Principal components of z-scored selected genes, and their mean over the 18 nearest spots and the spot itself."""
    slide = stimg.pp.to_patches(section, size=4, min_tissue=0.0).slides[0]
    values = slide.standardise(slide.expression.toarray(), np.arange(len(slide.genes)))[slide.obs_site]
    section.obsm["PCA"] = PCA(30, random_state=0).fit_transform(values)
    nearest = NearestNeighbors(n_neighbors=19).fit(section.obsm["spatial"]).kneighbors(return_distance=False)
    around = np.column_stack([np.arange(len(nearest)), nearest[:, :18]])
    section.obsm["PCA + 18 nearest"] = section.obsm["PCA"][around].mean(1)


def untrained(model: Model, *, programs: bool) -> Model:
    """Return the same network before its first step: with random gene tables, or started from gene programs."""
    from stimg.tl._programs import gene_programs

    torch.manual_seed(0)
    network = GeneMAE(model.config, len(model.genes)).eval()
    if programs:
        network.start_from_programs(*map(torch.from_numpy, gene_programs(untrained.patches, model.config.dim // 2)))
    return replace(model, network=network)


def judge(sections: dict, test: str, key: str) -> dict:
    """Scores of one embedding, in every section's `.obsm[key]`, on the judged section."""
    section = sections[test]
    labels, embedding = section.obs["domain"], section.obsm[key]
    scores = []
    for seed in range(SEEDS):
        stimg.tl.domains(section, N_DOMAINS, use_rep=key, rng=seed)
        scores.append(stimg.metrics.domain_scores(labels, section.obs["stimg_domain"]))
    scores = pd.DataFrame(scores)
    blocked = stimg.metrics.probe(embedding, labels, section.obsm["spatial"], method="knn", protocol="blocked")
    row = {"section": test, "method": key, "ARI": scores["ari"].mean(), "ARI sd": scores["ari"].std()}
    row |= {"NMI": scores["nmi"].mean(), "accuracy": scores["accuracy"].mean(), "blocked k-NN": blocked["accuracy"]}
    if not key.startswith("PCA"):
        others = [sections[name] for name in SECTIONS if name != test]
        row["transfer k-NN"] = np.mean(
            [
                stimg.metrics.transfer_probe(o.obsm[key], o.obs["domain"], embedding, labels, method="knn")["accuracy"]
                for o in others
            ]
        )
    return row


def pca_transfer(sections: dict, test: str, rows: list[dict]) -> None:
    """Fill in the baselines' transfer: components of the genes that all sections selected, fitted on all of them."""
    slides = stimg.pp.to_patches(list(sections.values()), size=4, min_tissue=0.0).slides
    shared = sorted(set.intersection(*(set(s.genes) for s in slides)))
    values = []
    for slide in slides:
        columns = np.array([np.flatnonzero(slide.genes == gene)[0] for gene in shared])
        dense = slide.expression.toarray()[:, columns]
        values.append(slide.standardise(dense, columns)[slide.obs_site])
    components = PCA(30, random_state=0).fit(np.concatenate(values))
    plain = {name: components.transform(v) for name, v in zip(sections, values, strict=True)}
    blurred = {}
    for name, section in sections.items():
        near = NearestNeighbors(n_neighbors=19).fit(section.obsm["spatial"]).kneighbors(section.obsm["spatial"])[1]
        blurred[name] = plain[name][near].mean(1)
    for row, embedding in zip(rows, (plain, blurred), strict=True):
        row["transfer k-NN"] = np.mean(
            [
                stimg.metrics.transfer_probe(
                    embedding[o], sections[o].obs["domain"], embedding[test], sections[test].obs["domain"], method="knn"
                )["accuracy"]
                for o in SECTIONS
                if o != test
            ]
        )


def main() -> None:
    """Run the benchmark and write its table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/dlpfc.md"))
    args = parser.parse_args()
    sections = load_sections()
    for section in sections.values():
        add_baselines(section)
    rows = []
    for test in SECTIONS:
        train = [name for name in SECTIONS if name != test]
        untrained.patches = patches = stimg.pp.to_patches([sections[n] for n in train], names=train)
        started = time.perf_counter()
        model = stimg.tl.pretrain(patches, get_config(args.config), max_epochs=args.max_epochs, rng=0)
        print(f"{test}: trained in {time.perf_counter() - started:.0f} s\n{model}", flush=True)
        baselines = [judge(sections, test, key) for key in ("PCA", "PCA + 18 nearest")]
        pca_transfer(sections, test, baselines)
        rows += baselines
        models = {
            "untrained": untrained(model, programs=False),
            "untrained + programs": untrained(model, programs=True),
            "trained": model,
        }
        for key, candidate in models.items():
            for section in sections.values():
                stimg.tl.embed(section, candidate, key_added=key)
            rows.append(judge(sections, test, key))
        for row in rows[-5:]:
            print(row, flush=True)
    table = pd.DataFrame(rows)
    mean = table.groupby("method", sort=False).mean(numeric_only=True).reset_index().assign(section="mean")
    table = pd.concat([table, mean])
    command = f"python benchmarks/dlpfc.py --config {args.config} --max-epochs {args.max_epochs}"
    text = (
        f"# DLPFC, leave one section out\n\n`{command}` (stimg {stimg.__version__})\n\n{__doc__.split(chr(10), 4)[4]}\n"
    )
    args.out.write_text(text + table.round(3).to_markdown(index=False) + "\n")


if __name__ == "__main__":
    main()
