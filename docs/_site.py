"""What MkDocs does besides: pages link to files of the repository, as on GitHub, and those files come along."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Files of the root that are pages of the site."""
COPIES = "files/"
"""The folder of the site with other files of the repository."""
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def in_repository(uri: str) -> PurePosixPath:
    """Where a page of the site lies in the repository."""
    if uri.startswith(COPIES):
        return PurePosixPath(uri.removeprefix(COPIES))
    return PurePosixPath(uri if uri in PAGES else f"docs/{uri}")


def in_site(target: str) -> str:
    """Where a file of the repository lies in the site."""
    if target in PAGES:
        return target
    return target.removeprefix("docs/") if target.startswith("docs/") else COPIES + target


def targets(uri: str, markdown: str) -> dict[str, str]:
    """The relative links of a page: as they are written → the file's path in the repository."""
    folder = in_repository(uri).parent
    return {link: posixpath.normpath(str(folder / link)) for link in LINK.findall(markdown)}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the root's pages, and whatever pages link to that lies outside docs/."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for target in targets(page.src_uri, page.content_string).values():
            uri = in_site(target)
            if uri.startswith(COPIES) and (ROOT / target).is_file() and files.get_file_from_path(uri) is None:
                copy = File.generated(config, uri, abs_src_path=str(ROOT / target))
                files.append(copy)
                waiting += [copy] if copy.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to the copies in the site."""
    uri = page.file.src_uri
    for link, target in targets(uri, markdown).items():
        relative = posixpath.relpath(in_site(target), posixpath.dirname(uri) or ".")
        markdown = markdown.replace(f"]({link}", f"]({relative}")
    return markdown
