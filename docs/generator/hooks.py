"""What MkDocs calls while it builds the site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # mkdocs as a command does not look into the folder that it is started in
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mkdocs.config.defaults import MkDocsConfig  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402
from mkdocs.structure.pages import Page  # noqa: E402

from docs.generator import pages  # noqa: E402

INCLUDED = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
"""Pages that are files of the repository's top."""
MACRO = re.compile(r"\{\{ *(\w+)(?:: *([^{}]+?))? *\}\}")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation, where it names their folder."""
    torch.set_num_threads(1)
    generated = pages.navigation()
    config.nav = _expanded(config.nav, generated)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and those that stand at the top of the repository."""
    for path, text in pages.everything().items():
        files.append(File.generated(config, path, content=text))
    for path, source in INCLUDED.items():
        files.append(File.generated(config, path, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what written pages quote.

    ``{{ seen: ldam, ldr }}`` on a line becomes a box with the evidence of those papers, ``{{ value: ldam / CE / tail
    recall }}`` the mean of an arm, ``{{ state }}`` how much is here.
    """

    def filled(found: re.Match[str]) -> str:
        macro, argument = found[1], found[2] or ""
        if macro == "seen":
            return pages.seen([slug.strip() for slug in argument.split(",")], page.file.src_uri)
        if macro == "value":
            return pages.value(*(part.strip() for part in argument.split(" / ")))
        if macro == "state":
            return pages.state()
        raise ValueError(f"{page.file.src_uri}: there is no macro {macro!r}.")

    # Generated pages may hold double braces of their own, in formulas.
    return markdown if page.file.generated_by else MACRO.sub(filled, markdown)


def _expanded(nav: Any, generated: dict[str, list[object]]) -> Any:
    if isinstance(nav, list):
        return [_expanded(one, generated) for one in nav]
    if isinstance(nav, dict):
        return {title: _expanded(one, generated) for title, one in nav.items()}
    return generated.get(nav, nav) if isinstance(nav, str) else nav
