"""Names of tissue regions: what they are read from, how they are learned, and where they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._components import neighbour_means
from stimg._apply._run_windows import run_windows
from stimg._apply._tokens import match_slides, shown_genes, site_tokens
from stimg._input._checks import check_finite
from stimg._input._threads import one_thread
from stimg._slide._gene_match import LEAST_SHARED
from stimg.models._content import labels_of_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from stimg._data import PatchDataset
    from stimg._slide._slide import Slide
    from stimg.models import Model

PENALTY = 100.0  # measured on sections that are used for choices only, as are the features
MOST_FITTED = 20_000
EVEN_ODDS = 0.7  # correlation at which a section is as likely of another tissue as of the same one
STEEPNESS = 12.0


@dataclass(frozen=True)
class Section:
    """One section as names are read from it."""

    name: str
    rows: np.ndarray  # int64 (n_obs,): its observations in the table
    obs_site: np.ndarray  # int64 (n_obs,): the site of each
    features: np.ndarray  # float32 (n_sites, 2 d)
    profile: np.ndarray  # float32 (n_genes,): mean log-normalised expression of the model's genes, NaN if unknown
    variable: np.ndarray  # bool (n_genes,): the genes of its tokens, the most variable ones


@dataclass(frozen=True)
class Names:
    """A regression on the features of a section, and the mean expression of the tissue where it holds."""

    tissue: str
    labels: list[str]
    weight: np.ndarray  # float (n_labels, 2 d)
    bias: np.ndarray  # float (n_labels,)
    profile: np.ndarray  # float32 (n_genes,), NaN for genes that are unknown or vary little

    def similarity(self, section: Section) -> float:
        """Return the rank correlation of a section's mean expression with that of this tissue, over its variable genes.

        It is 0 if they have fewer than 20 genes in common, or half of a smaller panel: chance may correlate those.
        """
        from scipy.stats import spearmanr

        known = np.isfinite(self.profile) & np.isfinite(section.profile)
        least = min(LEAST_SHARED, max(3, np.isfinite(self.profile).sum() / 2))
        if known.sum() < least or np.ptp(section.profile[known]) == 0 or np.ptp(self.profile[known]) == 0:
            return 0.0
        return float(spearmanr(self.profile[known], section.profile[known]).statistic)

    def probabilities(self, section: Section) -> np.ndarray:
        """Return the probability of each label if the section is of this tissue, float64 (n_sites, n_labels)."""
        from scipy.special import softmax

        return softmax(section.features @ self.weight.T + self.bias, axis=1)


@dataclass(frozen=True)
class Named:
    """The names given to a section."""

    name: str
    rows: np.ndarray  # int64 (n_obs,): its observations in the table
    names: Names  # of the tissue that it resembles most
    similarity: float
    codes: np.ndarray  # int64 (n_obs,): the best of the labels
    confidence: np.ndarray  # float32 (n_obs,)


def name_section(section: Section, names: Sequence[Names]) -> Named:
    """Give a section the names of the tissue that it resembles most."""
    similarities = [one.similarity(section) for one in names]
    best = int(np.argmax(similarities))
    probabilities = names[best].probabilities(section)
    confidence = probabilities.max(1) * same_tissue(similarities[best])
    codes = probabilities.argmax(1)[section.obs_site]
    confidence = confidence[section.obs_site].astype(np.float32)
    return Named(section.name, section.rows, names[best], similarities[best], codes, confidence)


def same_tissue(similarity: float) -> float:
    """Return how likely a section is of the tissue with which its mean expression correlates, from 0 to 1."""
    return float(1 / (1 + np.exp(-STEEPNESS * (similarity - EVEN_ODDS))))


def read_sections(
    table: AnnData, model: Model, windows: dict[str, Any], **expression: Any
) -> tuple[list[Section], dict[str, Any]]:
    """Return the sections of a table, and what to record of model and genes.

    `expression` says where it is and which genes it has, as in `match_slides`.
    """
    matched, record = match_slides(table, model, **expression)
    sections = [_section(model, slide, vocabulary, windows) for slide, vocabulary in matched]
    return sections, {**record, "model": model.card["name"], "sha256": model.sha256}


def learn_names(sections: Sequence[Section], codes: Sequence[np.ndarray], labels: list[str], tissue: str = "") -> Names:
    """Fit a regression to sections of one tissue with the label of each site, int64 (n_sites,), -1 for none.

    Multinomial logistic regression with an L2 penalty, on at most 20,000 sites, spaced evenly.
    """
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([section.features[code >= 0] for section, code in zip(sections, codes, strict=True)])
    known = np.concatenate([code[code >= 0] for code in codes])
    some = np.linspace(0, len(known) - 1, min(len(known), MOST_FITTED)).astype(np.int64)
    with one_thread():
        fitted = LogisticRegression(C=1 / PENALTY, max_iter=2000).fit(features[some], known[some])
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps the difference of the two
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    profiles = np.stack([np.where(section.variable, section.profile, np.nan) for section in sections])
    count = np.isfinite(profiles).sum(0)
    mean = np.where(count > 0, np.nansum(profiles, 0) / np.maximum(count, 1), np.nan)
    return Names(tissue, [labels[code] for code in fitted.classes_], weight, bias, mean.astype(np.float32))


def keep_names(model: Model, patches: PatchDataset, device: str) -> None:
    """Learn the names of the labels that a model was trained with, and keep them in its network."""
    import torch

    network = model.network
    for row, group in enumerate(patches.label_groups):
        labelled = patches.labelled(group)
        rows = [np.searchsorted(patches.genes, slide.genes) for slide, _ in labelled]
        sections = [
            _section(model, slide, own, {"device": device}) for (slide, _), own in zip(labelled, rows, strict=True)
        ]
        names = learn_names(sections, [index for _, index in labelled], patches.labels, group)
        places = torch.tensor([patches.labels.index(label) for label in names.labels])
        network.label_weight[places] = torch.from_numpy(names.weight).float()
        network.label_bias[places] = torch.from_numpy(names.bias).float()
        network.label_profile[row] = torch.from_numpy(np.nan_to_num(names.profile, nan=-1))


def known_names(model: Model) -> list[Names]:
    """Return the names that a model learned in training, one entry a tissue; none if it saw no labels."""
    found, network = [], model.network
    for row, (group, places) in enumerate(labels_of_groups(model.card).items()):
        prefix = f"{group}/" if group else ""
        weight, bias, profile = (
            tensor.numpy()
            for tensor in (network.label_weight[places], network.label_bias[places], network.label_profile[row])
        )
        labels = [model.card["labels"][i].removeprefix(prefix) for i in places]
        found.append(Names(group, labels, weight, bias, np.where(profile < 0, np.nan, profile)))
    return found


def _section(model: Model, slide: Slide, vocabulary: np.ndarray, windows: dict[str, Any]) -> Section:
    """Read a section: states of the decoder and tokens averaged over nearby sites, each z-scored within the section."""
    tokens = site_tokens(model, slide, vocabulary)
    states = run_windows(model, slide, tokens, readout="decoder", **windows)
    features = np.concatenate([_standardised(states), _standardised(neighbour_means(slide) @ tokens)], axis=1)
    check_finite("the embedding", features)
    profile = np.full(len(model.genes), np.nan, dtype=np.float32)
    profile[vocabulary[vocabulary >= 0]] = slide.mean[vocabulary >= 0]
    variable = np.zeros(len(model.genes), dtype=bool)
    variable[vocabulary[shown_genes(model, slide, vocabulary)]] = True
    return Section(slide.name, slide.obs_index, slide.obs_site, features, profile, variable)


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 1e-6, spread, np.inf)
