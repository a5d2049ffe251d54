"""Configuration of the documentation.

Builds without a network. With STIMG_DOCS_INTERSPHINX=1, links to other packages' documentation are fetched and checked.
"""

from __future__ import annotations

import os

import stimg

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("STIMG_PROGRESS", "no")

project = "stimg"
author = "stimg developers"
copyright = f"2026, {author}"
release = version = stimg.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
nitpicky = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "inherited-members": "ABC,Module,Dataset,Sampler,LightningModule"}
autodoc_typehints = "none"  # sphinx-autodoc-typehints shows them
default_role = "literal"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
typehints_defaults = "braces"
always_use_bars_union = True
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tutorials are committed with their outputs

html_theme = "sphinx_book_theme"
html_title = f"stimg {release}"
html_theme_options = {"show_toc_level": 2}

# Where names of other packages lead. Fetched only when asked for, so that the build needs no network.
_others = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "lightning": "https://lightning.ai/docs/pytorch/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "python": "https://docs.python.org/3/",
    "scanpy": "https://scanpy.readthedocs.io/en/stable/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "squidpy": "https://squidpy.readthedocs.io/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_mapping = (
    {name: (url, None) for name, url in _others.items()} if os.environ.get("STIMG_DOCS_INTERSPHINX") == "1" else {}
)

# Names of other packages are never checked here (some live under private modules); names of stimg always are.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(anndata|datetime|distributed|lightning|matplotlib|numpy|np|pandas|pathlib|scipy|sklearn|spatialdata|torch|collections"
        r"|typing|os|logging|Any|Path|AnnData|SpatialData|Axes|Figure|Generator|Callable|Callback|ArrayLike|NDArray"
        r"|ndarray|DataFrame|Series|Tensor|Module|Dataset|Sequence|Mapping|Iterator|Ellipsis|optional|abc|Self"
        r"|stimg\._slide\._slide|stimg\.models\._trained_model|stimg\.nn\._config|stimg\.datasets\._hest|stimg\.datasets\._stimage_1k4m)(\..*)?",
    ),
]
suppress_warnings = ["sphinx_autodoc_typehints.forward_reference", "sphinx_autodoc_typehints.guarded_import"]
