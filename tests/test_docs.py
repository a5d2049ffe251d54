"""The hand-written lists of the documentation name everything that is public."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

import stimg

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


@pytest.mark.filterwarnings("ignore")  # of readers
def test_after_domains_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "after_domains.md"
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    plt.close("all")
    assert len(names["shares"]) == 20
    assert names["outlines"].geometry.is_valid.all()
    names["outlines"].to_file("domains.geojson")
