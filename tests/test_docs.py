"""The hand-written lists of the documentation name everything that is public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import stimg
from stimg._apply._names import EVEN_ODDS, same_tissue

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["datasets", "metrics", "models", "nn", "pl", "pp", "tl"])
def test_api_page_lists_every_public_name(name):
    page = (ROOT / "docs" / "api.md").read_text()
    listed = set(re.findall(rf"^   {name}\.(\w+)$", page, flags=re.MULTILINE))
    public = {found for found in getattr(stimg, name).__all__ if not found.isupper()}
    assert listed == public


def test_readme_begins_with_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```bash\n(.*?)```", readme, flags=re.DOTALL)
    assert block is not None
    demo, tests = block[1].strip().splitlines()
    assert demo.endswith("&& python -m stimg demo")
    assert tests.endswith("&& python -m pytest")
    assert readme[: block.start()].count("\n\n") == 2, "only the title and one sentence come before"


def _run(page: str) -> dict[str, Any]:
    """Run the blocks of a page one after the other, and return what they named."""
    path = ROOT / "docs" / page
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(compile(block, str(path), "exec"), names)
    plt.close("all")
    return names


@pytest.mark.filterwarnings("ignore")  # of readers
def test_after_domains_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = _run("after_domains.md")
    assert len(names["shares"]) == 20
    assert names["outlines"].geometry.is_valid.all()
    names["outlines"].to_file("domains.geojson")


def test_annotate_runs_as_it_stands():
    with pytest.warns(UserWarning, match="mean expression correlates only"):
        names = _run("annotate.md")
    sure, named = names["second"], names["third"]
    assert (sure.obs["stimg_label"] != "unknown").mean() < (named.obs["stimg_label"] != "unknown").mean()
    assert (named.obs["stimg_label"].astype(str) == named.obs["domain"].astype(str)).mean() > 0.8
    assert (names["foreign"].obs["stimg_label"] == "unknown").all()


def test_annotate_says_how_similarity_counts():
    page = (ROOT / "docs" / "annotate.md").read_text()
    assert f"At a correlation of {EVEN_ODDS}," in page
    stated = re.findall(r"at (0\.\d+)(?: they are multiplied)? by (0\.\d+)", page)
    assert len(stated) == 2
    for similarity, factor in stated:
        assert same_tissue(float(similarity)) == pytest.approx(float(factor), abs=0.005)
