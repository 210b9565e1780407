"""A user session in a real browser that records all errors of the pages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import BrowserContext, ConsoleMessage, Page

from support.chromium import connect_to_chromium
from support.skipping import skip_or_fail

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "tests" / "browser" / "screenshots"
AXE = ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js"

SEEN = """
(() => {
  window.seen = [];
  window.steps = [];
  new MutationObserver(() => {
    for (const { textContent: step } of document.querySelectorAll(".progress"))
      if (window.steps.at(-1) !== step) window.steps.push(step);
    const texts = [...document.querySelectorAll(".by-dag .text")];
    const text = texts.length === 0 ? "" : texts.at(-1).textContent;
    if (window.seen.at(-1) !== text) window.seen.push(text);
  }).observe(document, { subtree: true, childList: true, characterData: true });
})()
"""
"""Records each text of the last answer of a chat, and each progress step that was shown."""


FOCUSED = """
(() => {
  const one = document.activeElement;
  if (one === null || one === document.body) return null;
  const name = one.labels?.[0]?.textContent ?? one.getAttribute("aria-label") ?? one.textContent;
  return `${one.tagName.toLowerCase()} ${name.trim()}`;
})()
"""
"""Returns the focused element: its tag and its name."""

MAX_STOPS = 200
"""Maximum of Tab stops on a page."""


class BrowserSession:
    """One browser profile with its tabs."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.context = context
        self.url = url
        self.problems: list[str] = []
        self.expects_cuts = False
        """Whether the test cuts connections, for which the browser logs errors."""

    async def open(self, path: str) -> Page:
        """Open a page in a new tab."""
        page = await self.context.new_page()
        page.on("console", self._record_message)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        await page.goto(f"{self.url}{path}")
        return page

    async def save_screenshots(self, page: Page, name: str) -> None:
        """Save screenshots of the page, wide and narrow, light and dark, for people to review.

        Fails if the page scrolls sideways at any width.
        """
        SCREENSHOTS.mkdir(exist_ok=True)
        before = page.viewport_size
        assert before is not None
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            for kind, width, height in (("wide", 1280, 900), ("narrow", 390, 844)):
                await page.set_viewport_size({"width": width, "height": height})
                await page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{kind}.png", full_page=True)
                assert await page.evaluate("document.documentElement.scrollWidth") <= width
        await page.emulate_media(color_scheme="light")
        await page.set_viewport_size(before)

    async def accessibility_violations(self, page: Page) -> list[str]:
        """Return the accessibility violations that axe finds, in light and dark."""
        if not AXE.exists():
            skip_or_fail("axe-core is not installed; run `npm ci` in web/")
        await page.evaluate(AXE.read_text())
        barriers: list[str] = []
        for scheme in ("dark", "light"):
            await page.emulate_media(color_scheme=scheme)
            # Colours change in a transition; wait for its end.
            await page.evaluate(
                "Promise.all(document.getAnimations().filter((one) => one instanceof CSSTransition)"
                ".map((one) => one.finished.catch(() => {})))"
            )
            found: dict[str, Any] = await page.evaluate("axe.run()")
            barriers += [
                f"{one['id']}, {scheme}: {node['html']}"
                for one in found["violations"]
                if one["impact"] in {"serious", "critical"}
                for node in one["nodes"]
            ]
        return barriers

    async def names_in_tab_order(self, page: Page) -> list[str]:
        """Return the names of all elements that the Tab key reaches, from top to bottom."""
        await self._tabbed(page)
        return await self._tabbed(page)

    async def _tabbed(self, page: Page) -> list[str]:
        """Press the Tab key until the focus leaves the page."""
        names: list[str] = []
        while len(names) < MAX_STOPS:
            await page.keyboard.press("Tab")
            name = await page.evaluate(FOCUSED)
            if name is None:
                return names
            names.append(name)
        raise AssertionError(f"the Tab key does not leave the page: {names[-5:]}")

    def _record_message(self, message: ConsoleMessage) -> None:
        # A browser logs an error for each 401, however the page handles it.
        borne = message.text.startswith("Failed to load resource")
        borne |= self.expects_cuts and message.text.startswith("WebSocket connection to")
        if message.type in {"error", "warning"} and not borne:
            self.problems.append(message.text)


@asynccontextmanager
async def open_browser(chromium_address: str, url: str, token: str | None = None) -> AsyncIterator[BrowserSession]:
    """Open a session; at the end, check that no page had an error or violated its CSP.

    Args:
        chromium_address: As in `support.chromium`.
        url: URL of the server.
        token: Airflow token of a signed-in user.
    """
    async with (
        connect_to_chromium(chromium_address) as browser,
    ):
        context = await browser.new_context()
        context.set_default_timeout(60_000)
        await context.add_init_script(SEEN)
        if token is not None:
            await context.add_cookies([{"name": "_token", "value": token, "url": url}])
        visitor = BrowserSession(context, url)
        yield visitor
        assert visitor.problems == []
