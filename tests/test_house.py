"""The house as docs/contributing.md draws it is the one that `import-linter` holds the code to."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "stimg"
PAGE = (ROOT / "docs" / "contributing.md").read_text()
MOST_LINES = 90


def rooms(floors):
    return [set(re.split(r"[ |:]+", floor)) for floor in floors]


def test_every_import_points_downwards():
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_picture_is_the_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    drawn = re.search(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)[1].strip().splitlines()
    assert rooms(drawn) == rooms(next(one for one in contracts if one["id"] == "layers")["layers"])
    assert set.union(*rooms(drawn)) == {
        path.stem for path in PACKAGE.iterdir() if not path.name.startswith("__") and path.name != "py.typed"
    }


def test_every_room_is_described_and_every_place_exists():
    house = PAGE.split("## The house")[1].split("## Style")[0]
    for room in set.union(*rooms(re.search(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)[1].strip().splitlines())):
        assert room == "_cli" or f"`{room}`" in house
    for place in re.findall(r"`([a-z_]+(?:\.py|/[a-z_.]*))`", house):
        assert (PACKAGE / place).exists(), place
    for names, place in re.findall(r"\| ((?:`\w+`(?:, )?)+) in `([\w/.]+)`", house):
        code = (PACKAGE / place).read_text()
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^(?:def |class )?{name}\b", code, flags=re.MULTILINE), (name, place)


def functions():
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node, text.splitlines()


def test_no_function_is_long():
    long = {}
    for path, node, lines in functions():
        code = {number for number in range(node.lineno, node.end_lineno + 1) if lines[number - 1].strip()}
        if ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if len(code) > MOST_LINES:
            long[f"{path.relative_to(PACKAGE)}:{node.name}"] = len(code)
    assert not long


@pytest.mark.parametrize("room", ["pp", "tl", "pl"])
def test_a_public_function_stands_in_the_file_named_after_it(room):
    for path in (PACKAGE / room).glob("_[a-z]*.py"):
        public = [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(one) == "checked" for one in node.decorator_list)
        ]
        assert public in ([path.stem[1:]], []), path
