"""The site, built with Sphinx by `make docs`, of pages that are read on the forge just as well."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import configuration

project = "Instruction backtranslation"
copyright = "the instruction-backtranslation contributors"
extensions = ["myst_parser"]
# Anchors as the forge makes them, so that a link to one works on both.
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_copy_source = False
# Else options such as --configfile lose a dash.
smartquotes = False

CONFIG = Path(__file__).parents[1] / "config"


def navigation(index: str) -> str:
    """The site's menu as Sphinx wants it: what the index links to, under the index's own headings."""
    menu = ""
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        pages = re.findall(r"\]\(([\w/]+)\.md\)", section)
        menu += "\n".join(["\n```{toctree}", ":hidden:", f":caption: {section.splitlines()[0]}", *pages, "```\n"])
    return menu


def complete(app: Any, page: str, text: list[str]) -> None:
    """Adds to a page what is not written by hand."""
    if page == "index":
        text[0] += navigation(text[0])
    if page == "reference/configuration":
        text[0] += configuration.reference(CONFIG / "schema.yaml", CONFIG / "config.yaml")


def setup(app: Any) -> None:
    app.connect("source-read", complete)
