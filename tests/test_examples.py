"""Every public function has an example in its docstring, and all of them run as they are printed."""

from __future__ import annotations

import doctest
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc

import stimg

COMPLETE = ("metrics", "pl", "pp", "tl")
FUNCTIONS = {
    f"{room}.{name}": function
    for room in (*COMPLETE, "datasets", "models")
    for name in getattr(stimg, room).__all__
    if inspect.isfunction(function := getattr(getattr(stimg, room), name))
}
SECTION = "\nExamples\n--------\n"
SHOWN = [name for name, function in FUNCTIONS.items() if SECTION in inspect.getdoc(function)]


def test_every_public_function_has_examples():
    assert [name for name in FUNCTIONS if name.startswith(COMPLETE) and name not in SHOWN] == []


@pytest.mark.parametrize("name", SHOWN)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(FUNCTIONS[name]).split(SECTION)[1]
    assert "\n---" not in text, "Examples are the last section"
    example = doctest.DocTestParser().get_doctest(text, {"stimg": stimg, "np": np, "sc": sc}, name, None, 0)
    assert example.examples, "the section has no line that runs"
    report: list[str] = []
    with stimg.settings.override(cachedir=tmp_path / "cache"):
        failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    plt.close("all")
    assert not failed, "".join(report)
