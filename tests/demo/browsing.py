"""What people do on the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

WAIT = 120_000
RECORD = """
window.seen = [];
window.notes = [];
new MutationObserver(() => {
  for (const what of ['.s1-keyframes img', '.s1-interpolation img', '.s1-super_resolution img', '.s1-result video'])
    if (document.querySelector(what) && !window.seen.includes(what)) window.seen.push(what);
  for (const note of document.querySelectorAll('.s1-note')) window.notes.push(note.innerText);
}).observe(document, {childList: true, subtree: true});
"""
"""Keeps what is shown only for a moment."""


def ask(tab: Any, prompt: str, seed: int) -> None:
    tab.get_by_label("Prompt", exact=True).fill(prompt)
    tab.get_by_label("Seed", exact=True).fill(str(seed))
    tab.get_by_role("button", name="Make").click()


def until_done(tab: Any) -> str:
    """Wait for the clip; where its file is."""
    tab.locator(".s1-state[data-state=done]").wait_for()
    return tab.locator(".s1-result video").get_attribute("src")


def until_it_plays(tab: Any) -> None:
    playing = "video => video.currentTime > 0.2 && !video.paused && video.videoWidth == 36"
    tab.wait_for_function(f"({playing})(document.querySelector('.s1-result video'))")


def downloaded(tab: Any) -> Path:
    with tab.expect_download() as download:
        tab.get_by_role("link", name="Download").click()
    return Path(download.value.path())


def shown_python(tab: Any) -> str:
    tab.get_by_text("The same clip in Python").click()
    return tab.locator(".s1-call").inner_text()
