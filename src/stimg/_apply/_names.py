"""Names of tissue regions: what they are read from, how they are learned, and where they hold.

A section is seen in two ways. In the first, expression and features are z-scored within the section: differences of
depth and platform vanish, but a section that shows other regions than the labelled ones is moved as well. In the
second, both are scaled by the labelled sections: what a section shows does not matter, but differences of depth do.
Probabilities are the mean of both, so that a name is certain only where the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stimg._apply._components import neighbour_means
from stimg._apply._run_windows import run_windows
from stimg._apply._shared import shared_components
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
    """One section, and the mean expression by which its tissue is recognised."""

    slide: Slide
    vocabulary: np.ndarray  # int64 (n_slide_genes,): rows of its genes in the model's vocabulary, -1 for unknown ones
    mean: np.ndarray  # float32 (n_genes,): of the model's genes, NaN if unknown


@dataclass(frozen=True)
class Regression:
    """A multinomial logistic regression."""

    weight: np.ndarray  # float (n_labels, k)
    bias: np.ndarray  # float (n_labels,)

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Return the probability of each label, float64 (n_sites, n_labels)."""
        from scipy.special import softmax

        return softmax(features @ self.weight.T + self.bias, axis=1)


@dataclass(frozen=True)
class Names:
    """The labels of a tissue, how they are read, and the expression of the labelled sections."""

    tissue: str
    labels: list[str]
    within: Regression  # on features that are scaled within a section
    across: Regression  # on features that are scaled by the labelled sections
    mean: np.ndarray  # float32 (n_genes,): of the labelled sections, NaN for genes that are unknown or vary little
    spread: np.ndarray  # float32 (n_genes,): standard deviation

    def similarity(self, section: Section) -> float:
        """Return the rank correlation of a section's mean expression with that of this tissue, over its variable genes.

        It is 0 if they have fewer than 20 genes in common, or half of a smaller panel: chance may correlate those.
        """
        from scipy.stats import spearmanr

        known = np.isfinite(self.mean) & np.isfinite(section.mean)
        least = min(LEAST_SHARED, max(3, np.isfinite(self.mean).sum() / 2))
        if known.sum() < least or np.ptp(section.mean[known]) == 0 or np.ptp(self.mean[known]) == 0:
            return 0.0
        return float(spearmanr(self.mean[known], section.mean[known]).statistic)


@dataclass(frozen=True)
class Labelled:
    """Labelled sections of one tissue, and the names learned from them."""

    sections: list[Section]
    codes: list[np.ndarray]  # the label of each site, int64 (n_sites,), -1 for none
    features: list[np.ndarray]  # of each section, scaled within it
    names: Names


@dataclass(frozen=True)
class Named:
    """The names given to a section."""

    name: str
    rows: np.ndarray  # int64 (n_obs,): its observations in the table
    names: Names  # of the tissue that it resembles most
    similarity: float
    codes: np.ndarray  # int64 (n_obs,): the best of the labels
    confidence: np.ndarray  # float32 (n_obs,)


def read_sections(table: AnnData, model: Model, **expression: Any) -> tuple[list[Section], dict[str, Any]]:
    """Return the sections of a table, and what to record of model and genes.

    `expression` says where it is and which genes it has, as in `match_slides`.
    """
    matched, record = match_slides(table, model, **expression)
    sections = [_section(model, slide, vocabulary) for slide, vocabulary in matched]
    return sections, {**record, "model": model.card["name"], "sha256": model.sha256}


def learn_names(
    model: Model,
    sections: Sequence[Section],
    codes: Sequence[np.ndarray],
    labels: list[str],
    windows: dict[str, Any],
    tissue: str = "",
) -> Labelled:
    """Learn the names of sections of one tissue from the label of each site, int64 (n_sites,), -1 for none."""
    shown = [np.zeros(len(model.genes), dtype=bool) for _ in sections]
    spreads = [np.full(len(model.genes), np.nan) for _ in sections]
    for section, variable, spread in zip(sections, shown, spreads, strict=True):
        slide, rows = section.slide, section.vocabulary
        variable[rows[shown_genes(model, slide, rows)]] = True
        spread[rows[rows >= 0]] = slide.std[rows >= 0]
    mean = _mean_of_known([np.where(own, s.mean, np.nan) for own, s in zip(shown, sections, strict=True)])
    spread = _mean_of_known([np.where(own, s, np.nan) for own, s in zip(shown, spreads, strict=True)])
    within = [_features_within(model, section, windows) for section in sections]
    across = [_features_across(model, section, mean, spread, windows) for section in sections]
    used = np.unique(np.concatenate([code[code >= 0] for code in codes]))
    own, other = _fit(within, codes), _fit(across, codes)
    names = Names(tissue, [labels[code] for code in used], own, other, mean, spread)
    return Labelled(list(sections), list(codes), within, names)


def name_sections(
    model: Model, sections: Sequence[Section], known: Labelled | Sequence[Names], windows: dict[str, Any]
) -> list[Named]:
    """Name the sections of a table, from labelled sections or from the names of a model.

    From labelled sections, features within a section also hold the components that they share with the table's.
    """
    features = [_features_within(model, section, windows) for section in sections]
    names: Sequence[Names]
    if isinstance(known, Labelled):
        every = [*known.sections, *sections]
        shared = shared_components(model, [(section.slide, section.vocabulary) for section in every])
        own, names = [*known.features, *features], [known.names]
        if shared is not None:
            parts = [(one, _standardised(rings)) for one, (rings, _) in zip(own, shared, strict=True)]
            own = [np.concatenate(part, axis=1) for part in parts]
            names = [replace(known.names, within=_fit(own[: len(known.sections)], known.codes))]
        features = own[len(known.sections) :]
    else:
        names = known
    return [_name(model, section, own, names, windows) for section, own in zip(sections, features, strict=True)]


def same_tissue(similarity: float) -> float:
    """Return how likely a section is of the tissue with which its mean expression correlates, from 0 to 1."""
    return float(1 / (1 + np.exp(-STEEPNESS * (similarity - EVEN_ODDS))))


def keep_names(model: Model, patches: PatchDataset, device: str) -> None:
    """Learn the names of the labels that a model was trained with, and keep them in its network."""
    import torch

    network = model.network
    for row, group in enumerate(patches.label_groups):
        labelled = patches.labelled(group)
        sections = [_section(model, slide, np.searchsorted(patches.genes, slide.genes)) for slide, _ in labelled]
        codes = [index for _, index in labelled]
        names = learn_names(model, sections, codes, patches.labels, {"device": device}, group).names
        places = torch.tensor([patches.labels.index(label) for label in names.labels])
        for way, regression in enumerate((names.within, names.across)):
            network.label_weight[way, places] = torch.from_numpy(regression.weight).float()
            network.label_bias[way, places] = torch.from_numpy(regression.bias).float()
        for way, profile in enumerate((names.mean, names.spread)):
            network.label_profile[way, row] = torch.from_numpy(np.nan_to_num(profile, nan=-1)).float()


def known_names(model: Model) -> list[Names]:
    """Return the names that a model learned in training, one entry a tissue; none if it saw no labels."""
    found, network = [], model.network
    for row, (group, places) in enumerate(labels_of_groups(model.card).items()):
        prefix = f"{group}/" if group else ""
        weight, bias = network.label_weight[:, places].numpy(), network.label_bias[:, places].numpy()
        mean, spread = (np.where(profile < 0, np.nan, profile) for profile in network.label_profile[:, row].numpy())
        labels = [model.card["labels"][i].removeprefix(prefix) for i in places]
        ways = [Regression(*parts) for parts in zip(weight, bias, strict=True)]
        found.append(Names(group, labels, ways[0], ways[1], mean, spread))
    return found


def _section(model: Model, slide: Slide, vocabulary: np.ndarray) -> Section:
    mean = np.full(len(model.genes), np.nan, dtype=np.float32)
    mean[vocabulary[vocabulary >= 0]] = slide.mean[vocabulary >= 0]
    return Section(slide, vocabulary, mean)


def _name(
    model: Model, section: Section, features: np.ndarray, names: Sequence[Names], windows: dict[str, Any]
) -> Named:
    """Give a section the names of the tissue that it resembles most."""
    similarities = [one.similarity(section) for one in names]
    number = int(np.argmax(similarities))
    best, slide = names[number], section.slide
    across = _features_across(model, section, best.mean, best.spread, windows)
    probabilities = (best.within.probabilities(features) + best.across.probabilities(across)) / 2
    confidence = (probabilities.max(1) * same_tissue(similarities[number])).astype(np.float32)
    codes = probabilities.argmax(1)
    place = slide.obs_site
    return Named(slide.name, slide.obs_index, best, similarities[number], codes[place], confidence[place])


def _features_within(model: Model, section: Section, windows: dict[str, Any]) -> np.ndarray:
    """Return features of the sites of a section, z-scored within it."""
    return np.concatenate([_standardised(part) for part in _read(model, section.slide, section, windows)], axis=1)


def _features_across(
    model: Model, section: Section, mean: np.ndarray, spread: np.ndarray, windows: dict[str, Any]
) -> np.ndarray:
    """Return features of the sites of a section whose expression is scaled by mean and spread of other sections."""
    known = section.vocabulary >= 0
    own_mean, own_spread = np.zeros((2, len(known)), dtype=np.float32)
    own_mean[known] = np.nan_to_num(mean[section.vocabulary[known]])
    own_spread[known] = np.nan_to_num(spread[section.vocabulary[known]])
    return np.concatenate(_read(model, section.slide.scaled_by(own_mean, own_spread), section, windows), axis=1)


def _read(model: Model, slide: Slide, section: Section, windows: dict[str, Any]) -> list[np.ndarray]:
    """Return the states of the decoder, and tokens averaged over nearby sites, float32 (n_sites, d) each."""
    tokens = site_tokens(model, slide, section.vocabulary)
    found = [run_windows(model, slide, tokens, readout="decoder", **windows), neighbour_means(slide) @ tokens]
    check_finite("the embedding", np.concatenate(found, axis=1))
    return found


def _fit(features: Sequence[np.ndarray], codes: Sequence[np.ndarray]) -> Regression:
    """Fit a regression with an L2 penalty to at most 20,000 labelled sites, spaced evenly over each label."""
    from sklearn.linear_model import LogisticRegression

    known = np.concatenate([code[code >= 0] for code in codes])
    values = np.concatenate([part[code >= 0] for part, code in zip(features, codes, strict=True)])
    order = np.argsort(known, kind="stable")
    some = order[np.unique(np.linspace(0, len(known) - 1, min(len(known), MOST_FITTED)).astype(np.int64))]
    first = np.unique(known, return_index=True)[1]
    some = np.unique(np.concatenate([some, first]))
    centre, scale = values[some].mean(0), values[some].std(0)
    scale = np.where(scale > 1e-6, scale, np.inf)
    with one_thread():
        fitted = LogisticRegression(C=1 / PENALTY, max_iter=2000).fit((values[some] - centre) / scale, known[some])
    weight, bias = fitted.coef_, fitted.intercept_
    if len(fitted.classes_) == 2:  # scikit-learn keeps the difference of the two
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    return Regression(weight, bias - weight @ centre)


def _mean_of_known(values: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over sections of what is known in each, NaN where nothing is."""
    stacked = np.stack(values)
    count = np.isfinite(stacked).sum(0)
    return np.where(count > 0, np.nansum(stacked, 0) / np.maximum(count, 1), np.nan).astype(np.float32)


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(0)
    return (values - values.mean(0)) / np.where(spread > 1e-6, spread, np.inf)
