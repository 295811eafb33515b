"""The site: its navigation, its links, and that it loads nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any
from urllib.parse import unquote

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)")


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "theme" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "true"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_in_the_site_and_nothing_else_of_the_theme(site: Path) -> None:
    pages = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in ROOT.glob("docs/**/*.md")}
    assert all((site / page).is_file() for page in pages)
    menu = (site / "index.html").read_text()
    missing = [str(page) for page in pages if f'href="{page}"' not in menu]
    assert missing in ([], ["index.html"])
    assert not list(site.rglob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for target in EMBEDDED.findall(page.read_text()):
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
    for style in site.rglob("*.css"):
        outside = re.findall(r"url\(\s*['\"]?((?:https?:)?//[^)]+)", style.read_text())
        assert not outside, f"{style.name} loads {outside}"


def test_diagrams_are_drawn_by_what_lies_in_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        scripts = re.findall(r'<script src="([^"]*mermaid[^"]*)"', text)
        assert len(scripts) == ('class="mermaid"' in text), page.name
        assert all((page.parent / script).is_file() for script in scripts)


def test_links_and_pictures_are_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        for target in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            assert (page.parent / unquote(target)).exists(), f"{page.name} links to {target}"


def test_a_new_page_needs_no_list() -> None:
    groups = [{"Start": ["index.md", "absent.md"]}, {"Why": ["adr/", "deploy/"]}]
    pages = ["adr/0001-a.md", "index.md", "new.md", "adr/0002-b.md"]
    assert hooks().navigation(groups, pages) == [
        {"Start": ["index.md"]},
        {"Why": [{"Decisions": ["adr/0001-a.md", "adr/0002-b.md"]}]},
        {"More": ["new.md"]},
    ]


class _Files:
    def __init__(self, *uris: str) -> None:
        self._uris = uris

    def get_file_from_path(self, uri: str) -> Any:
        return uri if uri in self._uris else None

    def documentation_pages(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(src_uri=uri) for uri in self._uris]


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](faq.md#x)", "[a](faq.md#x)"),
        ("index.md", "[a](adr/)", "[a](adr/0001-crc32-frames.md)"),
        ("adr/0001-crc32-frames.md", "[a](../faq.md)", "[a](../faq.md)"),
        ("index.md", "[a](../Makefile)", "a"),
        ("index.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("index.md", "[a](https://example.org/x.md)", "[a](https://example.org/x.md)"),
        ("deploy/jetson/README.md", "[a](../../docs/faq.md#y)", "[a](../../faq.md#y)"),
        ("faq.md", "[a](../deploy/jetson/README.md)", "[a](deploy/jetson/README.md)"),
    ],
)
def test_links_of_a_checkout_become_links_of_the_site(page: str, text: str, expected: str) -> None:
    files = _Files("index.md", "faq.md", "adr/0001-crc32-frames.md", "deploy/jetson/README.md")
    module = hooks()
    here: PurePosixPath = module.source(page)
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert module.relink(text, here, shown, files) == expected


def test_headings_have_the_anchors_of_github() -> None:
    assert hooks().github_anchor("What `x` is, & why not", "-") == "what-x-is--why-not"
