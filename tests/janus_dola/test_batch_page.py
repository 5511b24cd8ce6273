"""The page is opened in a real browser, without a window."""

import re
import shutil
import subprocess
import time

import numpy as np
import pytest
from PIL import Image

from janus_dola.batch import RunSettings, run_batch
from janus_dola.batch.folder import locked_folder
from janus_dola.batch.index_page import write_page
from janus_dola.batch.manifest import Manifest
from tests.janus_dola.batch_helpers import SHAPES, lines

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def outdir(mini, tmp_path_factory):
    """A run with names of all kinds, looks of their own and failures."""
    prompts = [
        *SHAPES[:8],
        {"prompt": "50% #1: a red cross? & <b>not bold</b> 😀 été", "seed": 2**62, "id": "odd one"},
        {"prompt": "a small green circle", "alpha": 0.5, "candidate_layers": [2, 5], "parallel_size": 1},
        {"prompt": "too long " * 300},
        {"prompt": 3},
    ]
    outdir = tmp_path_factory.mktemp("page") / "out #1"
    run_batch(prompts, outdir, RunSettings(parallel_size=2), skip_bad=True, pipe=mini)
    return outdir


@pytest.fixture
def browser(tmp_path):
    """Opens a page of a folder; returns what the browser made of it."""

    def open_page(outdir, fragment="", *options, size=(1280, 900)):
        width, height = size
        ended = subprocess.run(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
                "--disable-component-update", "--disable-sync", "--hide-scrollbars",
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--window-size={width},{height}", "--virtual-time-budget=20000", *options,
                (outdir / "index.html").as_uri() + fragment,
            ],
            capture_output=True, check=False, timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.decode()

    return open_page


def cards(dom):
    return re.findall(r'<button class="card".*?</button>', dom, re.DOTALL)


def test_images_and_maps_load_and_failures_show(outdir, browser):
    dom = browser(outdir, "", "--dump-dom", size=(1280, 3000))
    assert len(cards(dom)) == len(lines(outdir)) == 22
    assert dom.count('class="drawn loaded"') == dom.count('class="map loaded"') == 19
    assert "22 of 22 shown" in dom
    assert "3 failed" in dom
    assert not any("is not there" in card for card in cards(dom))
    odd = [card for card in cards(dom) if "50% #1" in card]
    assert len(odd) == 2
    assert f"seed {2**62}" in odd[0]
    assert "<b>" not in odd[0]
    assert sum("prompts must leave room for 64 image tokens" in card for card in cards(dom)) == 2
    assert sum("prompt must be a string, got 3" in card for card in cards(dom)) == 1


@pytest.mark.parametrize(
    ("fragment", "shown", "loaded"),
    [
        ("#q=RED+cross", 4, 4),
        ("#q=odd", 2, 2),
        ("#show=failed", 3, 0),
        ("#show=drawn&q=green", 5, 5),
        ("#q=no+such+words", 0, 0),
    ],
)
def test_the_filter_shows_what_it_says(outdir, browser, fragment, shown, loaded):
    dom = browser(outdir, fragment, "--dump-dom")
    assert len(cards(dom)) == shown
    assert dom.count('class="drawn loaded"') == loaded
    assert f"{shown} of 22 shown" in dom
    assert ('<p id="nothing" class="soft" hidden' in dom) == (shown > 0)


def test_maps_can_be_left_out(outdir, browser):
    dom = browser(outdir, "#maps=0", "--dump-dom")
    assert 'class="drawn loaded"' in dom
    assert 'class="map' not in dom


def test_a_missing_file_is_named(outdir, browser, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(outdir, copy)
    (copy / lines(outdir)[0]["file"]).unlink()
    assert f"{lines(outdir)[0]['file']} is not there" in cards(browser(copy, "", "--dump-dom"))[0]


def placed(dom):
    """The cards as they stand: top, left, label, seed."""
    result = [
        (int(place["top"]), int(place["left"]), re.search(r'class="label"[^>]*>([^<]*)<', card)[1], seed[1])
        for card in cards(dom)
        if (place := re.search(r'style="left: (?P<left>\d+)px; top: (?P<top>\d+)px', card))
        and (seed := re.search(r"seed (\d+)<", card))
    ]
    return sorted(result)


def test_a_prompts_images_stand_in_a_row_and_the_baseline_beside_dola(outdir, browser, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(outdir, copy)
    last = len(lines(outdir))
    plain = {
        "settings": {"cfg_weight": 5.0, "temperature": 1.0, "contrast": None},
        "map": None,
        "max_jsd": 0.0,
        "mean_jsd": 0.0,
    }
    with locked_folder(copy):
        manifest = Manifest(copy, last + 2)
        manifest.append(
            {**line, **plain, "layers": {"8": 64}, "image": last + i, "index": 99}
            for i, line in enumerate(lines(outdir)[:2])
        )
        write_page(copy, manifest, {})
    dom = browser(copy, "#q=a+large+red", "--dump-dom")
    actual = placed(dom)
    (first, second) = sorted({top for top, *_ in actual})[:2]
    in_row = [(label, seed) for top, _, label, seed in actual if top == first]
    dola = "DoLa, alpha 0.1, candidate layers auto"
    assert in_row[:4] == [("baseline", "0"), (dola, "0"), ("baseline", "1"), (dola, "1")]
    assert len({left for top, left, *_ in actual if top == first}) == len(in_row)
    assert all(label == dola for top, _, label, _ in actual if top == second)
    assert dom.count(">no contrast<") == 2
    assert re.findall(r'<div class="prompt"[^>]*>([^<]*)<', dom)[:2] == [line["prompt"] for line in lines(outdir)[:3:2]]
    legend = re.search(r'<div id="legend".*?</div>', dom, re.DOTALL)[0]
    assert re.findall(r"</span>(\d+)</span>", legend) == ["2", "4", "5", "6"]  # the final layer is no candidate


def test_more_images_than_a_line_has_room_for_go_on_below(outdir, browser, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(outdir, copy)
    last, (line, *_) = len(lines(outdir)), lines(outdir)
    with locked_folder(copy):
        manifest = Manifest(copy, last + 9)
        manifest.append({**line, "image": last + i, "k": 2 + i, "seed": 100 + i} for i in range(9))
        write_page(copy, manifest, {})
    for width, in_a_line in ((1280, 5), (500, 2)):
        dom = browser(copy, "#q=" + line["prompt"].replace(" ", "+"), "--dump-dom", size=(width, 4000))
        tops = [top for top, *_ in placed(dom)]
        assert len(tops) == 11
        assert [tops.count(top) for top in sorted(set(tops))][:-1] == [in_a_line] * (10 // in_a_line)


def test_the_screenshot_shows_the_drawn_images(outdir, browser, tmp_path):
    browser(outdir, "#q=red+circle", f"--screenshot={tmp_path / 'page.png'}")
    shot = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(float)
    assert shot.shape == (900, 1280, 3)

    def distance(line, column):
        """Mean difference of an image from what is shown in a column, at the height where it fits best."""
        image = Image.open(outdir / line["file"]).convert("RGB").resize((192, 192), Image.Resampling.BILINEAR)
        left = 25 + column * 220
        return min(abs(shot[top : top + 192, left : left + 192] - np.asarray(image)).mean() for top in range(60, 200))

    red_circle, other_red_circle, red_square = lines(outdir)[:3]
    assert distance(red_circle, 0) < 3
    assert distance(other_red_circle, 1) < 3
    assert distance(red_square, 0) > 6


def test_ten_thousand_images_open_in_seconds_and_few_are_elements(outdir, browser, tmp_path):
    large = tmp_path / "large"
    shutil.copytree(outdir, large)
    some = [line for line in lines(outdir) if line["file"]]
    with locked_folder(large):
        manifest = Manifest(large, 0)
        manifest.append(
            {**(line := some[i % len(some)]), "image": i, "index": i, "prompt": f"{line['prompt']} number {i}"}
            for i in range(len(lines(outdir)), 10_000)
        )
        write_page(large, manifest, {})
    assert (large / "index_data.js").stat().st_size < 4_000_000
    started = time.monotonic()
    dom = browser(large, "", "--dump-dom")
    assert time.monotonic() - started < 30
    assert "10000 of 10000 shown" in dom
    assert 10 < len(cards(dom)) < 60
    assert dom.count('class="drawn loaded"') + dom.count('class="error"') == len(cards(dom))
    in_view = lines(outdir)[: len(cards(dom))]
    assert dom.count('class="error"') == sum(line["file"] is None for line in in_view)
    dom = browser(large, "#q=number+9876", "--dump-dom")
    assert len(cards(dom)) == 1
    assert "number 9876" in cards(dom)[0]
