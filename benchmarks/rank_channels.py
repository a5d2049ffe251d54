"""Genes ranked by `stimg.tl.rank_channels`, against setting genes to their mean and embedding again.

    STIMG_DATA_DIR=../shared/data python benchmarks/rank_channels.py

With the bundled weights, on a section of cortex and one of breast cancer, for every expert label against all others.
Slides are embedded in one orientation, with the default stride, for scores and for changed slides alike. "Integrated"
is integrated gradients (Sundararajan et al. 2017, arXiv:1703.01365) in four steps from a slide on which every gene has
its mean. scanpy is `rank_genes_groups` by t-test.

1. **Single genes.** What the distance between a label and the others loses if one gene has its mean on the whole slide,
   correlated with the score over genes: for each label the two first by either method, the last and one from the
   middle, and 40 at random. "Slope" is that of the loss on the score. Mean over labels, and the worst one.
2. **Many genes.** What the distance loses if the first 10 or 100 genes of a ranking have their mean; mean over labels.
   scanpy's ranking is that by the size of its score, since genes with less expression count, too.
3. **Known markers.** The rank of layer markers (Maynard et al. 2021) in their layer, among the genes that the network
   is shown, and how many of the first 50 genes with more expression in a layer are among scanpy's first 50.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import stats

import stimg
from stimg._apply._channels import find_separation, gene_scores, on_sites
from stimg._apply._run_windows import run_windows, token_gradients
from stimg._apply._tokens import match_slides, shown_genes, site_tokens, token_layer

SLIDES = {"cortex": "dlpfc/151673", "breast cancer": "her2st/A1"}
WINDOWS = {"readout": "decoder", "symmetric": False}
MARKERS = {
    "L1": ["AQP4", "GFAP"],
    "L2": ["HPCAL1", "CUX2", "LAMP5"],
    "L3": ["LAMP5", "CUX2", "ENC1"],
    "L5": ["PCP4"],
    "L6": ["KRT17"],
    "WM": ["MBP", "MOBP", "PLP1"],
}
N_RANDOM = 40
N_REMOVED = (10, 100)
N_STEPS = 4
N_COMPARED = 50
RESULTS = Path("benchmarks/results/rank_channels.md")


class Slide:
    """A slide whose genes can be set to their mean, one by one or together."""

    def __init__(self, path: Path) -> None:
        self.table = ad.read_h5ad(path)
        stimg.pp.to_lattice(self.table)
        self.model = stimg.models.load("stimg-tiny")
        [(self.slide, self.rows)], _ = match_slides(
            self.table, self.model, layer=None, scale=None, lattice_key="lattice"
        )
        self.shown = shown_genes(self.model, self.slide, self.rows)
        self.genes = self.slide.genes[self.shown]
        self.weight, _, self.scale = token_layer(self.model, self.slide, self.rows, self.shown)
        self.values = self.slide.standardise(self.slide.expression[:, self.shown].toarray(), self.shown)
        self.tokens = site_tokens(self.model, self.slide, self.rows)
        labels = pd.Categorical(self.table.obs["domain"])
        self.names = list(labels.categories)
        codes = labels.codes.astype(int)
        states = self.embed(self.tokens)
        separation = find_separation(states, codes, range(len(self.names)), self.names)
        self.targets = [separation.targets(number) for number in range(len(self.names))]
        self.before = self.distances(states)

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        """Embedding of the observations."""
        return run_windows(self.model, self.slide, tokens, **WINDOWS)[self.slide.obs_site]

    def distances(self, states: np.ndarray) -> np.ndarray:
        """Distance of every label from the others along its line, 1 on the slide as it is."""
        return np.array([(target * states).sum(dtype=np.float64) for target in self.targets])

    def loss(self, genes: np.ndarray) -> np.ndarray:
        """What the distances lose if genes, numbers among those shown, have their mean on the whole slide."""
        part = self.values[:, genes] @ self.weight[genes] * self.scale
        return self.before - self.distances(self.embed(self.tokens - part.astype(np.float32)))

    def scores(self) -> dict[str, np.ndarray]:
        """Scores of every label and gene by each method, (n_labels, n_genes)."""
        ranked = stimg.tl.rank_channels(self.table, self.model, "domain", symmetric=False)
        wide = ranked.pivot_table(index="group", columns="gene", values="score", observed=True)
        wanted = np.stack([on_sites(self.slide, target) for target in self.targets])
        integrated = np.zeros(wide.shape)
        for share in (np.arange(N_STEPS) + 0.5) / N_STEPS:
            part = token_gradients(self.model, self.slide, self.tokens * np.float32(share), wanted, **WINDOWS)
            integrated += gene_scores(self.model, self.slide, self.rows, self.shown, part) / N_STEPS
        logged = self.table.copy()
        sc.pp.normalize_total(logged, target_sum=1e4)
        sc.pp.log1p(logged)
        logged = logged[logged.obs["domain"].notna().to_numpy(), self.genes].copy()
        sc.tl.rank_genes_groups(logged, "domain", method="t-test")
        found = [sc.get.rank_genes_groups_df(logged, name).set_index("names")["scores"] for name in self.names]
        return {
            "rank_channels": wide.loc[self.names, self.genes].to_numpy(),
            "integrated": integrated,
            "scanpy": np.stack([one[self.genes].to_numpy() for one in found]),
            "random": np.random.default_rng(1).random(wide.shape),
        }


def drawn_genes(scores: dict[str, np.ndarray]) -> np.ndarray:
    """Genes over the whole range of the scores."""
    n_genes = scores["random"].shape[1]
    chosen = set(np.random.default_rng(0).choice(n_genes, N_RANDOM, replace=False).tolist())
    for method in ("rank_channels", "integrated"):
        for row in scores[method]:
            chosen |= set(np.argsort(-row)[[0, 1, n_genes // 2, -1]].tolist())
    return np.array(sorted(chosen))


def single_genes(slide: Slide, scores: dict[str, np.ndarray]) -> list[dict]:
    """Rows of the first table."""
    genes = drawn_genes(scores)
    losses = np.array([slide.loss(genes[[i]]) for i in range(len(genes))]).T
    rows = []
    for method in ("rank_channels", "integrated"):
        pairs = list(zip(scores[method][:, genes], losses, strict=True))
        row = {"scores": method, "labels": len(pairs), "genes": len(genes)}
        for name, measure in (("Pearson", stats.pearsonr), ("Spearman", stats.spearmanr)):
            found = np.array([measure(*pair)[0] for pair in pairs])
            row |= {name: found.mean(), f"worst {name}": found.min()}
        rows.append(row | {"slope": np.mean([np.polyfit(*pair, 1)[0] for pair in pairs])})
    return rows


def many_genes(slide: Slide, scores: dict[str, np.ndarray]) -> list[dict]:
    """Rows of the second table."""
    rows = []
    for method, values in scores.items():
        row = {"ranking": method}
        for count in N_REMOVED:
            first = np.argsort(-np.abs(values) if method == "scanpy" else -values, axis=1)[:, :count]
            row[f"first {count}"] = np.mean([slide.loss(one)[number] for number, one in enumerate(first)])
        rows.append(row)
    return rows


def known_markers(slide: Slide, scores: dict[str, np.ndarray]) -> list[dict]:
    """Rows of the third table."""
    rows = []
    for number, name in enumerate(slide.names):
        place = {
            method: dict(zip(slide.genes, stats.rankdata(-scores[method][number]).astype(int), strict=True))
            for method in ("rank_channels", "scanpy")
        }
        raised = scores["scanpy"][number] > 0
        first = [
            set(slide.genes[np.argsort(-np.where(raised, scores[method][number], -np.inf))[:N_COMPARED]])
            for method in ("rank_channels", "scanpy")
        ]
        ranks = [
            f"{gene} {place['rank_channels'][gene]} ({place['scanpy'][gene]})"
            for gene in MARKERS.get(name, [])
            if gene in place["scanpy"]
        ]
        top = slide.genes[np.argsort(-scores["rank_channels"][number])[:6]]
        shared = f"{len(first[0] & first[1])} (by chance {N_COMPARED**2 / raised.sum():.0f})"
        row = {"label": name, "first genes": ", ".join(top), "markers: rank (scanpy's)": ", ".join(ranks)}
        rows.append(row | {f"of {N_COMPARED} shared": shared})
    return rows


def main() -> None:
    """Write the tables."""
    warnings.simplefilter("ignore")
    folder = Path(os.environ["STIMG_DATA_DIR"])
    tables: dict[str, list[dict]] = {"Single genes": [], "Many genes": [], "Known markers": []}
    for tissue, path in SLIDES.items():
        slide = Slide(folder / f"{path}.h5ad")
        scores = slide.scores()
        for title, rows in zip(tables, (single_genes, many_genes, known_markers), strict=True):
            if title != "Known markers" or tissue == "cortex":
                tables[title] += [{"slide": path} | row for row in rows(slide, scores)]
    parts = [
        "# Which genes an embedding depends on\n",
        f"`python benchmarks/rank_channels.py` (stimg {stimg.__version__})\n",
        __doc__.split("\n\n", 2)[2].strip() + "\n",
    ]
    for title, rows in tables.items():
        parts += [f"## {title}\n", pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f") + "\n"]
    RESULTS.write_text("\n".join(parts))
    print("\n".join(parts))


if __name__ == "__main__":
    main()
