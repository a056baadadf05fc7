"""The report as a reader meets it: a real browser opens the files, and anything odd on the way is a failure."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from vlws import paths
from vlws.lab import site as report

pytestmark = pytest.mark.browser


@pytest.fixture
def opened(browser):
    """`opened(site)` -> a page; console errors, exceptions and requests outside `site` fail the test at its end."""
    faults: list[str] = []
    contexts = []

    def open_site(site: Path, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console", lambda message: faults.append(f"console: {message.text}") if message.type == "error" else None
        )
        page.on("pageerror", lambda error: faults.append(f"exception: {error}"))
        page.on("request", lambda made: faults.append(f"request: {made.url}") if not inside(made.url, site) else None)
        page.on("requestfailed", lambda made: faults.append(f"failed: {made.url}"))
        page.goto((site / "index.html").as_uri())
        return page

    yield open_site
    for context in contexts:
        context.close()
    assert faults == []


def inside(url: str, site: Path) -> bool:
    """Whether an address is a file of the site, or data inside the page."""
    parts = urlparse(url)
    return parts.scheme == "data" or (parts.scheme == "file" and Path(unquote(parts.path)).parent == site)


@pytest.fixture
def site(workspace) -> Path:
    return report.build().parent


def column(page, name: str) -> list[str]:
    return page.locator(f'#claims-table tbody tr:visible td[data-label="{name}"]').all_inner_texts()


def test_the_guard_itself_notices(opened, site):
    """A page with an error and an address outside is what the other tests would fail on."""
    assert not inside("https://cdn.example.org/x.js", site)
    assert not inside((site.parent / "other.html").as_uri(), site)
    assert inside((site / "runs.html").as_uri() + "#x", site)
    page = opened(site)
    heard = []
    page.on("console", lambda message: heard.append(message.type))
    page.evaluate("console.warn('x')")
    page.wait_for_function("true")
    assert heard == ["warning"]


def test_claims_sort_both_ways(opened, site):
    page = opened(site)
    head = page.locator("#claims-table th", has_text="Measured")
    values = {True: None, False: None}
    for up in values:
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == ("ascending" if up else "descending")
        values[up] = [float(text.split()[0]) for text in column(page, "Measured")]
    assert values[True] == sorted(values[True])
    assert values[False] == values[True][::-1]


def test_sorting_works_by_keyboard(opened, site):
    page = opened(site)
    page.locator("#claims-table th", has_text="Verdict").get_by_role("button").focus()
    page.keyboard.press("Enter")
    words = [re.sub(r"^\W+", "", text).split("\n")[0] for text in column(page, "Verdict")]
    assert words == sorted(words)
    assert len(set(words)) == 3


def test_filters_narrow_the_table_and_reset(opened, site):
    page = opened(site)
    form = page.locator("form.filters")
    assert form.locator("output").inner_text() == "3 claims"
    form.get_by_label("Search").fill("language costs")
    assert form.locator("output").inner_text() == "1 of 3 claims"
    form.locator("select[name=verdict]").select_option("supported")
    assert page.get_by_text("No claim matches").is_visible()
    form.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelector('form.filters output').textContent === '3 claims'")


def test_what_is_filtered_stands_in_the_address(opened, site):
    page = opened(site)
    page.locator('.counts button[data-verdict="undecided"]').click()
    page.wait_for_function("location.hash === '#claims?verdict=undecided'")
    page.reload()
    page.wait_for_function("document.querySelector('form.filters output').textContent === '1 of 3 claims'")


def test_a_headline_count_filters_the_table(opened, site):
    page = opened(site)
    page.locator('.counts button[data-verdict="undecided"]').click()
    page.wait_for_function("document.querySelector('form.filters output').textContent === '1 of 3 claims'")
    assert all("04.C2" in text for text in column(page, "Claim"))


def test_a_chapter_opens_unfolds_and_leads_back(opened, site):
    page = opened(site)
    page.locator(".card", has_text="Guidance by language").get_by_role("link").click()
    page.wait_for_url("**/04_cmg.html")
    blocks = page.locator("details.code")
    assert blocks.count() == 7
    code = blocks.nth(1).locator(".highlight")
    assert not code.is_visible()
    blocks.nth(1).locator("summary").click()
    assert code.is_visible()
    assert "from tqdm import tqdm" in code.inner_text()
    page.get_by_role("button", name="Show all code").click()
    assert page.locator("details.code[open]").count() == 7
    page.get_by_role("button", name="Hide all code").click()
    assert page.locator("details.code[open]").count() == 0
    page.locator("table.verdicts").get_by_role("link", name="04.C2").click()
    assert page.url.endswith("#04.C2")
    page.get_by_role("link", name="All chapters").click()
    page.wait_for_url("**/index.html#chapters")


def test_a_claim_leads_to_the_cell_that_measured_it(opened, site):
    page = opened(site)
    page.locator("#claims-table").get_by_role("link", name="04.C3").first.click()
    page.wait_for_url("**/result-04_cmg-full.html#04.C3")
    page.goto((site / "04_cmg.html").as_uri())
    page.locator("table.verdicts").get_by_role("link", name="04.C3").click()
    page.wait_for_url("**/04_cmg.html#04.C3")
    page.wait_for_function(
        "(t => t > 40 && t < innerHeight)(document.getElementById('04.C3').getBoundingClientRect().top)"
    )


def test_formulas_are_typeset(opened, site):
    page = opened(site)
    page.goto((site / "04_cmg.html").as_uri())
    assert page.locator(".math .katex").count() == page.locator(".math").count() == 4
    assert page.locator(".katex-error").count() == 0
    loaded = page.evaluate(
        "document.fonts.ready.then(() => [...document.fonts].filter(f => f.status === 'loaded').length)"
    )
    assert loaded > 0


def test_a_failed_chapter_leads_to_the_cell_that_raised(opened, site):
    page = opened(site)
    page.locator(".card", has_text="A chapter that fails").get_by_role("link").click()
    page.get_by_role("link", name="To the cell").click()
    assert page.url.endswith("#error")
    assert "holds no pictures" in page.locator("main .failure").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1280])
def test_no_page_is_wider_than_the_window(opened, site, width, scheme):
    page = opened(site, width, scheme)
    for path in sorted(site.glob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name


def test_text_stands_out_from_its_ground_in_both_schemes(opened, site):
    """WCAG AA, 4.5 to 1, for all text that lies on a plain colour."""
    for scheme in ("light", "dark"):
        page = opened(site, scheme=scheme)
        for name in ("index.html", "04_cmg.html", "05_fails.html", "runs.html"):
            page.goto((site / name).as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
            assert page.evaluate(CONTRAST) == [], f"{name}, {scheme}"


CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const faults = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    if (element.closest("script, style, .skip, .hidden, .katex-mathml, select")) continue;
    let ground = [255, 255, 255], opacity = 1;
    for (let e = element; e; e = e.parentElement) opacity *= Number(getComputedStyle(e).opacity);
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0.5) { ground = c; break; }
    }
    if (opacity < 0.05) continue;  // shown only when pointed at
    const colour = parse(getComputedStyle(element).color).slice(0, 3);
    const ink = colour.map((v, k) => v * opacity + ground[k] * (1 - opacity));
    const [a, b] = [light(ink), light(ground)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const what = walker.currentNode.data.trim().slice(0, 30);
    if (ratio < 4.45) faults.add(`${ratio.toFixed(2)} ${element.tagName}.${element.className} ${what}`);
  }
  return [...faults];
}"""


# --- the real registry ------------------------------------------------------------------------------------------------

REGISTRY = sorted(path.stem for path in paths.notebooks().glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def real_site(tmp_path_factory) -> Path:
    """The committed notebooks and results, without this machine's runs."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("VLWS_RUNS", str(folder / "none"))
        return report.build(folder / "site").parent


@pytest.mark.parametrize("slug", ["index", "runs", *REGISTRY])
def test_every_page_of_the_registry_opens_clean(opened, real_site, slug):
    for width in (390, 1280):
        page = opened(real_site, width)
        page.goto((real_site / f"{slug}.html").as_uri())
        assert page.locator("h1").count() == 1
        assert page.locator(".katex-error").all_inner_texts() == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_site_works_wherever_it_is_moved(opened, site, tmp_path):
    moved = tmp_path / "a folder, moved"
    shutil.move(site, moved)
    page = opened(moved)
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("link", name="20261120T100000").click()
    page.wait_for_url("**/04_cmg.html")
