"""What mkdocs does differently here: a navigation that finds new pages, and links of a checkout.

Pages keep the links that work in a checkout (docs/../deploy/..., folders, GitHub's anchors). Here
they are turned into links of the site.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("deploy",)
"""Folders beside docs/ whose pages belong to the site."""
FENCE = re.compile(r"^( *)```.*?^\1```$", flags=re.M | re.S)
LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s]+)\)")
DIAGRAM = 'class="mermaid"'


def github_anchor(title: str, separator: str) -> str:
    """Return the anchor that GitHub gives a heading, so that links hold in both places."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation of the pages that are there."""
    config.mdx_configs["toc"]["slugify"] = github_anchor
    docs = Path(config.docs_dir)
    pages = [path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*.md"))]
    pages = [page for page in pages if not page.startswith("theme/")]
    config.nav = navigation(config.extra["groups"], [*pages, *(uri for uri, _ in outside())])
    return config


def navigation(groups: list[dict[str, list[str]]], pages: list[str]) -> list[dict[str, Any]]:
    """Share pages out over groups.

    Args:
        groups: titles with the pages that belong there, in order; `folder/` stands for all below
            it, as a group of its own. What is named and not there is left out.
        pages: all pages. Those that no group names go into the last one.
    """
    left, nav = list(pages), []
    for group in groups:
        [(title, wanted)] = group.items()
        entries: list[Any] = []
        for name in wanted:
            found = [page for page in left if page == name or page.startswith(f"{name}")]
            left = [page for page in left if page not in found]
            if name.endswith("/") and found:
                entries.append({TITLES.get(name, name.strip("/").capitalize()): found})
            else:
                entries.extend(found)
        nav.append({title: entries})
    if left:
        nav.append({"More": left})
    return nav


TITLES = {"adr/": "Decisions", "deploy/": "On real machines", "results/": "Tables"}


def outside() -> list[tuple[str, Path]]:
    """Return pages beside docs/: their place in the site and their file."""
    files = [path for folder in OUTSIDE for path in sorted((ROOT / folder).rglob("*.md"))]
    return [(path.relative_to(ROOT).as_posix(), path) for path in files]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages beside docs/ in."""
    for uri, path in outside():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links of a checkout into links of the site; leave fenced blocks alone."""
    here = source(page.file.src_uri)
    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [relink(markdown[end : fence.start()], here, page, files), fence.group()]
        end = fence.end()
    return "".join([*parts, relink(markdown[end:], here, page, files)])


def source(uri: str) -> PurePosixPath:
    """Return a page's place in the checkout."""
    return PurePosixPath(uri if uri.startswith(OUTSIDE) else f"docs/{uri}")


def relink(text: str, here: PurePosixPath, page: Page, files: Files) -> str:
    """Rewrite the links of a piece of a page.

    A folder becomes its first page. What is in the checkout but not in the site keeps its text
    and loses its link. What is nowhere stays as it is, for mkdocs to complain about.
    """

    def link(match: re.Match[str]) -> str:
        words, (target, _, anchor) = match[1], match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = normpath(str(here.parent / target))
        uri = path.removeprefix("docs/")
        if (ROOT / path).is_dir():
            below = [p.src_uri for p in files.documentation_pages()]
            inside = sorted(found for found in below if found.startswith(f"{uri}/"))
            uri = inside[0] if inside else uri
        if files.get_file_from_path(uri) is None:
            return words if (ROOT / path).exists() else match[0]
        start = str(PurePosixPath(page.file.src_uri).parent)
        return f"[{words}]({relpath(uri, start)}{'#' + anchor if anchor else ''})"

    return LINK.sub(link, text)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Load what draws diagrams, from this site, where a page has some."""
    if DIAGRAM not in html:
        return html
    script = relpath("assets/mermaid.tiny.js", str(PurePosixPath(page.url).parent))
    return f'{html}\n<script src="{script}"></script>'
