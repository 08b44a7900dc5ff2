"""The report in a real browser: headless Chromium where one is installed."""

import os
import re

import pytest
from devtools import Page, find_chromium

# A wide and a narrow window, in systems that prefer light and dark.
VIEWS = [(1200, "light"), (1200, "dark"), (390, "light"), (390, "dark")]

LUMINANCE = """(color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""

# Words whose contrast with what lies behind them is under 4.5 to 1 (WCAG AA).
FAINT = f"""(() => {{
  const luminance = {LUMINANCE};
  const behind = (element) => {{
    for (let node = element; node; node = node.parentElement) {{
      const color = getComputedStyle(node).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }}
    return "rgb(255, 255, 255)";
  }};
  const faint = [];
  for (const element of document.querySelectorAll("main *, header *, footer *")) {{
    const own = [...element.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.getClientRects().length || ["TITLE", "DESC"].includes(element.tagName.toUpperCase())) continue;
    const style = getComputedStyle(element);
    const ink = luminance(element instanceof SVGElement ? style.fill : style.color);
    const paper = luminance(behind(element));
    const contrast = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (contrast < 4.5) faint.push(`${{element.tagName}} ${{element.className}}: ${{contrast.toFixed(2)}}`);
  }}
  return faint;
}})()"""

WIDER = """[...document.querySelectorAll("body *")].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !e.closest(".scroll") && !e.closest("svg");
}).map((e) => `${e.tagName} ${e.className}`)"""

NAMELESS = """[...document.querySelectorAll('svg[role="img"], img')].filter((e) => {
  const ids = (e.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
  const words = ids.map((id) => document.getElementById(id)?.textContent || "").join(" ") || e.alt || "";
  return words.trim().length < 5;
}).length"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = find_chromium()
    if chromium is None:
        reason = "no Chromium is installed; the report was not tried in a browser"
        if os.environ.get("REPERTORY_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    page = Page(chromium, tmp_path_factory.mktemp("profile"))
    yield page
    page.close()


@pytest.fixture(params=["small", "smoke"])
def address(request, report_pages):
    return report_pages[request.param].as_uri()


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_the_console_stays_silent_and_nothing_is_fetched(browser, address, width, theme):
    browser.open(address, width, theme=theme)
    assert browser.problems == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [address]


@pytest.mark.parametrize("width", [1200, 390, 320])
def test_the_page_is_never_wider_than_the_window(browser, address, width):
    browser.open(address, width)
    browser.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(WIDER) == []


@pytest.mark.parametrize(("width", "theme"), VIEWS)
def test_words_stand_out_from_their_ground_in_both_themes(browser, address, width, theme):
    browser.open(address, width, theme=theme)
    paper = browser.evaluate(f"({LUMINANCE})(getComputedStyle(document.body).backgroundColor)")
    assert (paper > 0.7) if theme == "light" else (paper < 0.05)
    assert browser.evaluate(FAINT) == []


def test_every_figure_has_a_text_alternative(browser, address):
    browser.open(address)
    assert browser.evaluate("document.querySelectorAll('svg[role=\"img\"]').length") > 5
    assert browser.evaluate(NAMELESS) == 0


def test_words_in_figures_stay_readable_on_a_phone(browser, address):
    browser.open(address, 390)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('.plot text')].map((e) =>"
        " parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a)"
    )
    assert min(sizes) > 10


def test_labels_of_a_figure_do_not_overlap(browser, address):
    overlaps = """[...document.querySelectorAll(".plot")].flatMap((plot) => {
      const boxes = [...plot.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
      const hits = [];
      boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
        const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
        const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
        if (wide > 1 && high > 3) hits.push(`${a} / ${b}`);
      }));
      return hits;
    })"""
    for width in (1200, 390):
        browser.open(address, width)
        assert browser.evaluate(overlaps) == []


def test_the_theme_can_be_changed_from_the_keyboard(browser, address):
    browser.open(address, theme="light")
    browser.evaluate("localStorage.clear()")
    browser.open(address, theme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.evaluate(paper)
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.id") == "theme"
    assert re.search("light", browser.evaluate("document.activeElement.getAttribute('aria-label')"))
    browser.press("Enter", 13, "\r")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.getElementById('theme-name').textContent") == "dark"
    assert browser.evaluate(paper) != light


def test_a_dark_page_is_printed_on_white_paper(browser, address):
    browser.open(address, theme="dark")
    browser.call(
        "Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate(f"({LUMINANCE})(getComputedStyle(document.body).color)") < 0.05
    assert browser.evaluate("getComputedStyle(document.getElementById('theme')).display") == "none"
