"""The page where people meet it: a real Chromium, offline, by keyboard, light and dark, wide and narrow."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nisynth.report.training_page import render_training
from tests.report.pages import HOSTILE, hostile_page, page
from tests.report.test_page import STUDENT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of this machine; `$NISYNTH_CHROMIUM` names another."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = (os.environ.get("NISYNTH_CHROMIUM", ""), "chromium", "google-chrome")
    found = next((path for name in names if name and (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium, or set NISYNTH_CHROMIUM")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


class Visit:
    """A page opened from a file, with whatever it complained of or asked for."""

    def __init__(self, browser: Any, path: Path, **context: Any) -> None:
        self.troubles: list[str] = []
        self.requests: list[str] = []
        self.context = browser.new_context(
            offline=True, **{"viewport": {"width": 1200, "height": 900}, **context}
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(f"file://{path}")

    def column(self, number: int) -> list[str]:
        """The text of a column of the task table, as it stands."""
        cells = f"#task-table tbody tr > :nth-child({number})"
        texts: list[str] = self.page.eval_on_selector_all(
            cells, "cells => cells.map(c => c.textContent.trim())"
        )
        return texts


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "large.html"
    path.write_bytes(page(1000, 10).render())
    return path


@pytest.fixture(scope="module", params=["light", "dark"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_missing_broken_or_too_wide(browser: Any, large: Path, width: int, scheme: str) -> None:
    visit = Visit(browser, large, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert visit.troubles == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:"))] == []
    images = visit.page.eval_on_selector_all("img", "all => all.map(i => [i.naturalWidth, i.alt])")
    assert len(images) == 10
    assert all(width_px > 0 and alt for width_px, alt in images)
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.page.locator("#task-table tbody tr").count() == 1000
    visit.context.close()


def test_rows_sort_and_filter_by_keyboard(browser: Any, large: Path) -> None:
    visit = Visit(browser, large)
    button = visit.page.locator("#task-table thead button").nth(4)  # R_BN
    button.focus()
    visit.page.keyboard.press("Enter")
    values = [float(text) for text in visit.column(5)]
    assert values == sorted(values)
    assert visit.page.locator("#task-table th[aria-sort=ascending]").count() == 1
    visit.page.keyboard.press("Space")
    assert [float(text) for text in visit.column(5)] == sorted(values, reverse=True)
    visit.page.locator("#filter").focus()
    visit.page.keyboard.type("node-3 99.0%")
    shown = visit.page.locator("#task-table tbody tr:not([hidden])")
    assert shown.count() == 125
    assert visit.page.locator("#count").inner_text() == "125 of 1,000 rows"
    assert visit.troubles == []
    visit.context.close()


def test_hostile_texts_are_shown_not_obeyed(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "hostile.html"
    path.write_bytes(hostile_page().render())
    visit = Visit(browser, path)
    assert visit.troubles == []
    assert visit.page.title() != "1"
    assert HOSTILE in visit.page.locator("#failures").inner_text()
    assert HOSTILE in visit.page.locator("#images").inner_text()
    assert visit.page.locator("img[src=x]").count() == 0
    visit.context.close()


def test_everything_is_there_without_javascript(browser: Any, large: Path) -> None:
    visit = Visit(browser, large, java_script_enabled=False)
    assert visit.page.locator("#task-table tbody tr").count() == 1000
    assert visit.page.locator("#filter").is_hidden()
    assert visit.page.locator("h2:visible").count() == 10
    visit.context.close()


def test_a_screen_reader_finds_its_way(browser: Any, large: Path) -> None:
    visit = Visit(browser, large)
    assert visit.page.locator("h1").count() == 1
    for query in (
        "img:not([alt])",
        "section:not([aria-labelledby])",
        "th:not([scope])",
        "svg:not([aria-hidden])",
    ):
        assert visit.page.locator(query).count() == 0, query
    assert visit.page.locator("[role=img]:not([aria-label])").count() == 0
    assert visit.page.locator("table:not(:has(caption))").count() == 0
    visit.page.keyboard.press("Tab")
    assert visit.page.evaluate("document.activeElement.className") == "skip"
    visit.context.close()


CONTRAST = """() => {
  const luminance = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
      .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = "h1,h2,h3,p,a,dt,dd,small,th,td,caption,figcaption,button,.word";
  return Math.min(...[...document.querySelectorAll(texts)]
    .filter((node) => node.textContent.trim() && node.offsetParent && node.className !== "skip")
    .map((node) => {
      const [x, y] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((a, b) => b - a);
      return (x + 0.05) / (y + 0.05);
    }));
}"""


def test_every_text_stands_out_from_its_ground(browser: Any, large: Path, scheme: str) -> None:
    visit = Visit(browser, large, color_scheme=scheme)
    assert visit.page.evaluate(CONTRAST) >= 4.5
    visit.context.close()


def test_the_page_of_a_student(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "student.html"
    path.write_bytes(render_training(STUDENT, "student"))
    visit = Visit(browser, path, viewport={"width": 390, "height": 900})
    assert visit.troubles == []
    assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.page.locator("#student svg").count() == 2
    visit.context.close()
