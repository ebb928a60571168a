"""The page in a real browser: Chromium as Debian has it, driven by Playwright; `make test-browser` runs it."""

import shutil
import threading

import pytest
import shown_runs

from barlow_jax.results import page, serve

pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip(
        "playwright.sync_api", reason="there is no Playwright; `make test-browser` installs it"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [shown_runs.made(folder / name, pictures=4, side=300, seed=seed) for seed, name in enumerate(("a", "b"))]


@pytest.fixture
def opened(browser, tmp_path):
    """opened(folders or address, ...) -> a page; at the end nothing may have gone wrong in any, nor been asked for."""
    wrong, contexts = [], []

    def open_(what, viewport=DESK, scheme="light", touch=False):
        if isinstance(what, list):
            file = tmp_path / f"page_{len(contexts)}.html"
            file.write_text(page.page(what), encoding="utf-8")
            what = f"file://{file}"
        contexts.append(browser.new_context(viewport=viewport, color_scheme=scheme, has_touch=touch))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: wrong.append(message.text))
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.on("requestfailed", lambda request: wrong.append(request.url))
        shown.goto(what)
        return shown

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


def legend(shown):
    """The values beside the first chart, with their names."""
    return shown.locator(".chart").first.locator(".u-legend").inner_text()


def over(shown, share=0.5):
    """Moves to a place of the first chart, as a share of its width."""
    area = shown.locator(".chart .u-over").first
    area.scroll_into_view_if_needed()
    box = area.bounding_box()
    shown.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)


def first_and_last(shown):
    """The steps at the ends of every chart's axis."""
    return shown.evaluate("curves.shown()")


def test_hover_shows_the_values_there(opened, runs):
    shown = opened([runs[0]])
    assert shown.locator(".chart canvas").count() >= 10
    before = legend(shown)
    over(shown, 0.2)
    there = legend(shown)
    over(shown, 0.8)
    assert "last" in before and len({before, there, legend(shown)}) == 3


def test_a_drag_zooms_all_and_a_double_click_goes_back(opened, runs):
    shown = opened([runs[0]])
    whole = first_and_last(shown)
    over(shown, 0.25)
    shown.mouse.down()
    over(shown, 0.4)
    over(shown, 0.5)
    shown.mouse.up()
    zoomed = first_and_last(shown)
    assert len({tuple(ends) for ends in zoomed}) == 1 and 60 < zoomed[0][0] < 80 and 130 < zoomed[0][1] < 150
    shown.locator(".chart .u-over").first.dblclick()
    assert first_and_last(shown) == whole == len(whole) * [[1, 280]]


def test_a_logarithmic_axis_and_runs_that_are_hidden(opened, runs):
    shown = opened(runs)
    button = shown.locator(".chart button.log").first
    before = shown.locator(".chart canvas").first.evaluate("canvas => canvas.toDataURL()")
    button.click()
    assert shown.locator(".chart button.log").first.get_attribute("aria-pressed") == "true"
    assert shown.locator(".chart canvas").first.evaluate("canvas => canvas.toDataURL()") != before
    assert shown.locator(".chart").first.locator(".u-series.u-off").count() == 0
    shown.locator(".runs button").nth(1).click()
    assert shown.locator(".chart").first.locator(".u-series.u-off").count() == 1
    assert shown.locator(".runs button").nth(1).get_attribute("aria-pressed") == "false"


def test_the_slider_changes_the_picture(opened, runs):
    shown = opened([runs[0]])
    figure = shown.locator(".frames").first
    visible = figure.locator("img:visible")
    assert visible.count() == 1 and visible.get_attribute("data-step") == "280"
    assert visible.evaluate("image => image.complete && image.naturalWidth > 0")
    figure.locator("input").focus()
    shown.keyboard.press("Home")
    assert visible.count() == 1 and visible.get_attribute("data-step") == "0"
    assert figure.locator("output").inner_text() == "step 0"


def test_dark_as_the_system_is_and_by_the_button(opened, runs):
    paper = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened([runs[0]]), opened([runs[0]], scheme="dark")
    before = light.locator(".chart canvas").first.evaluate("canvas => canvas.toDataURL()")
    assert light.evaluate(paper) == "rgb(253, 252, 249)" and dark.evaluate(paper) == "rgb(22, 24, 27)"
    light.locator("#theme").click()
    assert light.evaluate(paper) == dark.evaluate(paper)
    assert light.locator(".chart canvas").first.evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.parametrize("number", [1, 2])
def test_a_phone_never_scrolls_sideways(opened, runs, number):
    shown = opened(runs[:number], viewport=PHONE, touch=True)
    shown.locator("summary").first.click()  # the widest table
    assert shown.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    before = legend(shown)
    shown.locator(".chart .u-over").first.tap()
    assert legend(shown) != before


def test_live_it_follows_the_run_and_keeps_what_was_unfolded(opened, runs, tmp_path):
    run = shown_runs.made(tmp_path / "live", pictures=2)
    with serve.opened([run], 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            shown = opened(f"http://127.0.0.1:{server.server_port}/")
            shown.locator("#live", has_text="live").wait_for()
            shown.locator("summary").first.click()
            with (run / "metrics.jsonl").open("a") as file:
                file.write('{"step": 1400, "loss": 1.25, "knn": 0.999}\n')
            shown.locator(".cards", has_text="99.9 %").wait_for(timeout=20_000)
            assert shown.evaluate("document.querySelector('details').open")
            assert first_and_last(shown)[0][1] == 1400
        finally:
            server.shutdown()
            thread.join()
