"""The page of the server in a real browser, without a window."""

import base64
import os
from pathlib import Path

import pytest

from janus_dola.images.recipe import read_recipe
from janus_dola.serve import api
from janus_dola.serve.service import ServerOptions, Service
from tests.janus_dola.browser import CHROMIUM, Browser
from tests.janus_dola.server import running, until

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")
PROMPT = "a large red circle on white"
FAR_ENOUGH = "document.querySelectorAll('figcaption').length === 2"


@pytest.fixture(scope="module")
def url(mini):
    service = Service(ServerOptions("mini"), lambda: mini)
    with pytest.MonkeyPatch.context() as patch, running(service) as url:
        patch.setattr(api, "_HEARTBEAT", 0.02)  # the page must skip signs of life
        until(lambda: service.ready())
        yield url


@pytest.fixture
def open_page(url, tmp_path):
    opened = []

    def open_page(width, height, dark=False):
        opened.append(Browser(tmp_path / f"profile{len(opened)}", url, width, height, dark))
        opened[-1].until("document.readyState === 'complete' && !document.getElementById('draw')?.disabled")
        return opened[-1]

    yield open_page
    for browser in opened:
        browser.close()


def draw(browser, prompt, seed):
    browser.value(f"byId('seed').value = '{seed}'; byId('prompt').value = ''; byId('prompt').focus()")
    browser.type(prompt)
    browser.press_enter()


def kept(tmp_path, name):
    """Where a screenshot goes: to a folder to look at, if there is one."""
    return Path(os.environ.get("SCREENSHOTS", tmp_path)) / name


def test_both_pictures_grow_and_have_maps_and_metadata(open_page, tmp_path):
    browser = open_page(1280, 900)
    browser.value(
        "globalThis.seen = new Set(); new MutationObserver(() => document.querySelectorAll('img.drawn')"
        ".forEach(each => seen.add(each.src))).observe(byId('pair'), {childList: true, subtree: true})"
    )
    draw(browser, PROMPT, 7)
    browser.until(FAR_ENOUGH)
    assert browser.value("seen.size") >= 8
    assert browser.value("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    assert browser.value("document.querySelectorAll('img.map').length") == 1
    assert browser.value("[...document.querySelectorAll('div.map')].map(each => each.textContent)") == ["no contrast"]
    assert "Both drawn in" in browser.value("byId('status').textContent")
    browser.screenshot(kept(tmp_path, "page_1280.png"))
    for k, dola in enumerate((False, True)):
        link = browser.value(f"document.querySelectorAll('figcaption a')[{k}].href")
        path = tmp_path / "image.png"
        path.write_bytes(base64.b64decode(link.partition(",")[2]))
        recipe = read_recipe(path)
        assert (recipe.prompt, recipe.seed, recipe.settings.contrast is not None) == (PROMPT, 7, dola)


def test_what_was_drawn_before_comes_back_and_a_wrong_setting_is_said(open_page, tmp_path):
    browser = open_page(390, 844, dark=True)
    draw(browser, PROMPT, 1)
    browser.until("entries.length === 1")
    draw(browser, "a small blue cross", 2)
    browser.until("entries.length === 2")
    assert browser.value("document.documentElement.scrollWidth") == 390
    browser.screenshot(kept(tmp_path, "page_390.png"))
    browser.value("document.querySelectorAll('#history button')[1].click()")
    assert browser.value("[byId('prompt').value, byId('seed').value]") == [PROMPT, "1"]
    browser.value("byId('premature_layer').value = '99'; byId('draw').click()")
    browser.until("!byId('error').hidden")
    assert "premature_layer must lie in 1 .. 7" in browser.value("byId('error').textContent")
    assert browser.value("!byId('draw').disabled && byId('stop').disabled")
