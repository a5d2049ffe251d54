"""What the metadata of a weights file may hold: one check of every field, for files that are written and read."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

HISTORY_COLUMNS = ["epoch", "train_loss", "val_loss", "lr", "seconds"]
LONGEST_TEXT = 10_000
LONGEST_GENE = 256  # characters
MOST_CHARACTERS = 2**26  # of a vocabulary as an array, in which every name is as long as the longest
LARGEST_SIZE = {"patch": 256, "spot": 1}  # sites on a side of a window
LARGEST_CROP = 2**14  # pixels
LARGEST_UM = 1e6


class Rule(NamedTuple):
    """What a field holds."""

    wanted: str
    holds: Callable[[Any], bool]
    required: bool = False


Rules = dict[str, Rule]


def whole(low: int, high: int, *, required: bool = False) -> Rule:
    """Expect an integer."""
    return Rule(f"an integer from {low:,} to {high:,}", lambda v: type(v) is int and low <= v <= high, required)


def number(low: float, high: float, *, required: bool = False) -> Rule:
    """Expect a finite number."""
    return Rule(f"a number from {low:g} to {high:g}", lambda v: type(v) in (int, float) and low <= v <= high, required)


def choice(*values: Any, required: bool = False) -> Rule:
    """Expect one of some values."""
    return Rule(f"one of {list(values)}", lambda v: any(v is one or v == one for one in values), required)


def text(*, required: bool = False) -> Rule:
    """Expect a string."""
    return Rule(f"a text of at most {LONGEST_TEXT:,} characters", _is_text, required)


def texts(*, required: bool = False, among: Collection[str] | None = None, once: bool = False) -> Rule:
    """Expect a list of strings, on request only some strings, or each only once."""

    def holds(value: Any) -> bool:
        right = isinstance(value, list) and all(_is_text(one) and (among is None or one in among) for one in value)
        return right and (not once or len(set(value)) == len(value))

    return Rule(f"a list of {'different ' if once else ''}texts{f' among {among}' if among else ''}", holds, required)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and _can_be_written(value)


def _can_be_written(value: str) -> bool:
    """Tell whether a string has no halves of characters, which JSON can hold but no file or screen."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


ANY_CARD: Rules = {
    "name": text(required=True),
    "slides": texts(required=True),
    "target_sum": number(1e-3, 1e12, required=True),
    "licence": text(),
    "seed": whole(0, 2**63),
    "stimg_version": text(),
    "scale": text(),
}
PATCH_CARD: Rules = ANY_CARD | {
    "size": whole(1, 2**24, required=True),  # of a whole slide; see `LARGEST_SIZE` for the others
    "n_sites": whole(1, 2**62, required=True),
    "unit": choice("patch", "spot", "slide", required=True),
    "kinds": texts(among=("hex", "square", "free")),
    "labels": texts(once=True),
    "label_groups": texts(once=True),
    "n_channels": whole(1, 2**31),
    "genes_per_slide": whole(1, 2**31),
    "init": Rule("a name and a sha256", lambda v: isinstance(v, dict) and all(map(_is_text, v.values()))),
}
IMAGE_CARD: Rules = ANY_CARD | {
    "size": whole(1, LARGEST_CROP, required=True),
    "encoder": Rule("a text or None", lambda v: v is None or _is_text(v), required=True),
    "mpp": number(1 / LARGEST_UM, LARGEST_UM, required=True),
    "diameter_um": number(1 / LARGEST_UM, LARGEST_UM, required=True),
    "stain_normalise": choice(True, False, required=True),
    "n_spots": whole(1, 2**62, required=True),
}
TUNED_CARD: Rules = {"spatial": Rule("the card of a spatial model", lambda v: isinstance(v, dict), required=True)}


def check_content(content: dict[str, Any], rules: Rules) -> np.ndarray:
    """Refuse metadata with missing or absurd entries; return the genes."""
    genes = check_vocabulary(content["genes"])
    check_card(content["card"], rules, len(genes))
    check_history(content["history"])
    return genes


def labels_of_groups(card: dict[str, Any]) -> dict[str, list[int]]:
    """Return the numbers of the labels of each of the card's `label_groups`, whose names they begin with."""
    labels = list(enumerate(card.get("labels", [])))
    prefixes = {group: f"{group}/" if group else "" for group in card.get("label_groups", [])}
    return {group: [i for i, label in labels if label.startswith(prefix)] for group, prefix in prefixes.items()}


def check_card(card: Any, rules: Rules, n_genes: int) -> None:
    """Refuse a card that lacks a field, or has one that is not as expected; other entries are the user's own."""
    if not isinstance(card, dict):
        msg = f"its card cannot be read: expected a dictionary, found {reprlib.repr(card)}"
        raise ValueError(msg)
    for name, rule in rules.items():
        if (name in card or rule.required) and not rule.holds(card.get(name)):
            found = reprlib.repr(card[name]) if name in card else "nothing"
            msg = f"its card has {found} as {name!r}, expected {rule.wanted}"
            raise ValueError(msg)
    if "unit" in rules and card["size"] > LARGEST_SIZE.get(card["unit"], np.inf):
        msg = f"its card has {card['size']} as 'size', expected at most {LARGEST_SIZE[card['unit']]} for its 'unit'"
        raise ValueError(msg)
    groups = labels_of_groups(card) if "label_groups" in rules else {}
    if few := [group for group, labels in groups.items() if len(labels) < 2]:
        msg = f"its card has fewer than two 'labels' of {few[:3]}, which are among its 'label_groups'"
        raise ValueError(msg)
    if card.get("genes_per_slide", 1) > n_genes:
        more = f"{card['genes_per_slide']:,} as 'genes_per_slide'"
        msg = f"its {n_genes:,} genes do not fit its configuration and card, which has {more}"
        raise ValueError(msg)


def check_vocabulary(names: Any) -> np.ndarray:
    """Return a vocabulary, str (n_genes,); refuse one that is empty or too large, or has a gene twice."""
    if not isinstance(names, list) or not names or not all(isinstance(gene, str) for gene in names):
        msg = f"its vocabulary cannot be read: expected a list of names as 'genes', found {reprlib.repr(names)}"
        raise ValueError(msg)
    longest = max(names, key=len)
    if not all(names) or len(longest) > LONGEST_GENE or len(longest) * len(names) > MOST_CHARACTERS:
        found = f"{len(names):,} with up to {len(longest):,} characters ({reprlib.repr(longest)})"
        msg = f"its vocabulary has empty or too long names in 'genes': at most {LONGEST_GENE} characters, found {found}"
        raise ValueError(msg)
    if not all(map(_can_be_written, names)) or any("\0" in gene for gene in names):
        msg = "its vocabulary has names in 'genes' with characters that cannot be written"
        raise ValueError(msg)
    if len(set(names)) < len(names):
        msg = "its vocabulary has a gene twice in 'genes'"
        raise ValueError(msg)
    return np.asarray(names, dtype=str)


def check_history(rows: Any) -> None:
    """Refuse a history that is not a list of epochs with numbers, or `None` where there is none."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        msg = f"its history cannot be read: expected a list of epochs, found {reprlib.repr(rows)}"
        raise ValueError(msg)
    for row in rows:
        for name in HISTORY_COLUMNS:
            value = row.get(name)
            if value is not None and (type(value) not in (int, float) or not abs(value) < 2**62):
                msg = f"its history has {reprlib.repr(value)} as {name!r}, expected a number"
                raise ValueError(msg)


def most_layers(config: Any) -> int:
    """Return the largest number of layers that a configuration names, itself or for a network inside."""
    entries: Mapping[str, Any] = config if isinstance(config, dict) else {}
    own = [value for name, value in entries.items() if name.endswith("layers") and isinstance(value, int)]
    return max([0, *own, *(most_layers(value) for value in entries.values() if isinstance(value, dict))])
