"""The page to try models on: what is behind it, and the page itself in a real browser.

The browser's test needs `pip install 'hf_detr[demo]' playwright` and a Chromium, Debian's for
example (`apt-get install chromium`).
"""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_detr.inference.prediction import read_outputs
from hf_detr.models.variants import VARIANTS
from hf_detr.plots import demo_page as demo

from ..test_documentation import REPOSITORY, write_folder
from ..tiny import IN_TRANSFORMERS, SAMPLED
from ..waiting import NEVER, wait_until

SCRIPT = Path(__file__)  # no image
IMAGE = REPOSITORY / "examples" / "images" / "garments.jpg"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def garments() -> Any:
    """The run of the detector that comes along on the image of garments."""
    run, said = demo.look(demo.GARMENTS, str(IMAGE))
    assert "480 × 360 pixels" in said
    return run


@pytest.mark.parametrize("variant", IN_TRANSFORMERS)  # the Hub has none of DINO in this format
def test_models_of_all_variants_can_be_chosen(variant: str) -> None:
    """The page offers trained models of each variant."""
    offered = VARIANTS[variant].on_the_hub
    assert offered and set(offered) <= set(demo.MODELS)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table in HTML, without its head."""
    rows = re.findall(r"<tr>(<td>.*?)</tr>", table)
    return [re.findall("<td>(.*?)</td>", row) for row in rows]


def test_table_escapes_names() -> None:
    """A class name is text on the page, whatever it contains."""
    assert rows_of(demo.make_table([["<b>a&b", "0.50", 1]])) == [["&lt;b&gt;a&amp;b", "0.50", "1"]]


def test_nothing_above_the_threshold_shows_the_best_few(garments: Any) -> None:
    """Above all scores, the plots are drawn for the best queries, and the words say so."""
    _, words, pictures = demo.draw_tab(garments, {}, "points", 0.99, None)
    assert words == f"No score is above 0.99: the best few. {demo.HINT}"
    assert len(pictures) == demo.NUM_FIGURES


def test_threshold_draws_from_one_run(garments: Any) -> None:
    """A threshold picks from what the model said once: fewer rows, the best first, all drawn."""
    picture, summary, table = demo.show(garments, 0.5)
    rows = rows_of(table)
    names, scores = [row[0] for row in rows], [float(row[1]) for row in rows]
    assert names[0] == "bag" and scores == sorted(scores, reverse=True)
    assert set(names) == {"bag", "trouser", "ankle boot", "coat", "sneaker", "t-shirt/top"}
    assert max(map(int, rows[0][2:])) in (434, 435)
    assert summary == ", ".join(f"1 × {name}" for name in names)
    assert picture.size == (640, 480)  # enlarged, but the table counts the image's pixels
    _, _, fewer = demo.show(garments, 0.65)
    assert rows_of(fewer) == rows[:3]
    empty, summary, table = demo.show(garments, 0.99)
    assert table == "" and "threshold down" in summary
    assert empty.tobytes() != picture.tobytes()


def test_models_own_thresholds(garments: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page offers those of a model that has them, and uses them until the slider is moved."""
    assert not demo.has_own_thresholds(garments) and not demo.has_own_thresholds(None)
    assert demo.show(garments, 0.9, own=True)[2] == demo.show(garments, 0.5)[2]
    monkeypatch.setattr(garments.model.config, "class_thresholds", {"coat": 0.99, "bag": 0.99})
    assert demo.has_own_thresholds(garments)
    rows = rows_of(demo.show(garments, 0.9, own=True)[2])
    assert [row[0] for row in rows] == ["trouser", "ankle boot", "sneaker", "t-shirt/top"]
    assert len(rows_of(demo.show(garments, 0.5)[2])) == 6


@pytest.mark.parametrize(("name", "image"), [("nowhere", IMAGE), (None, IMAGE), ("", SCRIPT)])
def test_failures_are_words(name: str | None, image: Path) -> None:
    """A model that isn't there, none at all, and a file that is no image: words, nothing drawn."""
    run, said = demo.look(demo.GARMENTS if name == "" else name, str(image))
    assert run is None and len(said) > 20
    assert demo.show(run, 0.5) == (None, "", "")
    assert demo.draw_tab(run, {}, "points", 0.5, None)[2] == []


def test_tabs_fit_the_variant(variant: str, tmp_path: Path) -> None:
    """Each variant fills one tab with figures, and the other one says why it can't."""
    write_folder(tmp_path, variant, "ForObjectDetection")
    run, _ = demo.look(str(tmp_path), str(IMAGE))
    fitting, other = ("points", "attention")[:: 1 if variant in SAMPLED else -1]
    seen, words, pictures = demo.draw_tab(run, {}, fitting, 0.0, [(40.0, 30.0)])
    assert words == demo.HINT
    assert [type(picture).__name__ for picture in pictures] == ["PngImageFile"] * demo.NUM_FIGURES
    again, words, pictures = demo.draw_tab(run, seen, other, 0.0, None)
    assert again is seen and pictures == []
    assert "instead" in words


def test_embedded_models_draw_each_others_tabs(garments: Any) -> None:
    """Without a network, both tabs are drawn; words say that another model than the chosen did."""
    both = demo.EMBEDDED.values()
    attention, said = demo.look(demo.EMBEDDED["attention"], str(IMAGE))
    assert attention is not None, said
    for run, own, other in ((garments, "points", "attention"), (attention, "attention", "points")):
        records, words, _ = demo.draw_tab(run, {}, own, 0.5, None)
        assert list(records) == [run.model.name_or_path] and demo.STAND_INS[own] not in words
        records, words, pictures = demo.draw_tab(run, records, other, 0.5, None)
        assert sorted(records) == sorted(both) and len(pictures) == demo.NUM_FIGURES
        drew = (attention if run is garments else garments).model
        assert words.startswith(f"{demo.STAND_INS[other]} ({type(drew).__name__}).")
        again, _, _ = demo.draw_tab(run, records, other, 0.5, [(40.0, 30.0)])
        assert again is records  # nothing is computed again


def test_masks_are_drawn(tmp_path: Path) -> None:
    """A segmentation model's segments follow the threshold too."""
    sizes = {"d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
    write_folder(tmp_path, "detr", "ForSegmentation", **sizes)
    run, said = demo.look(str(tmp_path), str(IMAGE))
    assert "DetrForSegmentation" in said
    run.outputs.logits[..., -1] -= 9  # random weights find nothing; make one query find all
    run.outputs.logits[:, 0, 3] += 5
    run.outputs.pred_masks[:, 0] += 99
    [everything], [nothing] = (
        read_outputs(run.processor, run.outputs, least, [(200, 256)]) for least in (0.0, 0.999)
    )
    assert everything["segments_info"] and not nothing["segments_info"]
    assert everything["segmentation"].shape == (200, 256)
    picture, _, _ = demo.show(run, 0.0)
    assert picture.size == (640, 480)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the page is served, by a process of its own."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio isn't installed: pip install 'hf_detr[demo]'")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright, which drives the browser, isn't installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "hf_detr", "demo", "--port", str(port)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        page = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_until(lambda: answers(address), page, interval=0.5)
        yield address
    finally:
        page.kill()
        page.wait()
        print(log.read_text())  # shown where the page failed


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=NEVER) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.slow
def test_page_in_a_browser(address: str, tmp_path: Path) -> None:
    """Uploads, table, threshold, tabs and a wrong model work in Chromium, without any network."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=NEVER * 1000)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=NEVER * 1000
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(NEVER * 1000)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        table, summary = page.locator("#table"), page.locator("#summary")
        expect(summary).to_contain_text("coat")  # the example

        page.get_by_label("Remove Image").first.click()
        expect(summary).not_to_contain_text("coat")
        page.locator("input[type=file]").first.set_input_files(IMAGE)
        expect(table).to_contain_text("coat")
        expect(table).to_contain_text("sneaker")

        page.get_by_label("number input for Least score").fill("0.65")
        expect(table).not_to_contain_text("coat")
        expect(table).to_contain_text("trouser")

        page.get_by_role("tab", name="Sampling").click()
        expect(page.locator("#points-words")).to_contain_text("Click")
        shown = page.locator("[role=tabpanel]:visible img").last
        before = shown.get_attribute("src")
        page.locator("#image img").click(position={"x": 60, "y": 60})  # choose a pixel
        expect(shown).not_to_have_attribute("src", before)
        page.get_by_role("tab", name="Attention").click()
        expect(page.locator("#attention-words")).to_contain_text("other model that comes with")
        expect(page.locator("[role=tabpanel]:visible img").last).to_be_visible()

        broken = tmp_path / "broken.jpg"
        broken.write_text("no image")
        page.get_by_label("Remove Image").first.click()
        # An upload before the page has done so would be lost.
        expect(page.locator("#said")).to_contain_text("drop an image")
        page.locator("input[type=file]").first.set_input_files(broken)
        expect(page.locator("#said")).to_contain_text("broken.jpg can't be read as an image")
        toast = page.get_by_test_id("toast-body")  # one, and not gradio's own error
        expect(toast).to_have_count(1)
        expect(toast).to_contain_text("broken.jpg can't be read as an image")

        page.screenshot(path=tmp_path / "page.png")
        page.get_by_label("Model").fill("nowhere")
        page.get_by_label("Model").press("Enter")
        expect(page.locator("#said")).to_contain_text("nowhere can't be loaded")

        phone = browser.new_page(viewport={"width": 375, "height": 800})
        phone.set_default_timeout(NEVER * 1000)
        phone.goto(address)
        expect(phone.locator("#table")).to_contain_text("coat")
        assert phone.evaluate("document.documentElement.scrollWidth") == 375
        tops = [phone.locator(place).bounding_box()["y"] for place in ("#picture", "#image")]
        assert tops[0] < tops[1]  # what was found is above the choices
        browser.close()
    with Image.open(tmp_path / "page.png") as picture:
        assert picture.size == (1280, 1000)
    assert not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
