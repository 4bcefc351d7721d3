"""The report of an evaluation: what the page says, and how it looks in a browser.

The browser's test needs `pip install playwright` and a Chromium (`apt-get install chromium`).
"""

import base64
import html
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import IterableDataset
from torch.utils.data import Subset

from hf_detr import CocoEvaluator, StreamedDataset, read_coco
from hf_detr.data.dataset import DetectionDataset
from hf_detr.plots import write_report
from hf_detr.plots.report import LARGEST, SMALLEST

from ..some_data import entry, write_coco
from ..waiting import NEVER
from .test_demo_page import CHROMIUM

NASTY = '<script>alert("cat")</script>'
LONG = "a class with a name that is much longer than one would like it to be in any table"
CATEGORIES = [{"id": 3, "name": NASTY}, {"id": 18, "name": LONG}, {"id": 20, "name": "$x$ & _y"}]


@pytest.fixture
def data(tmp_path: Path) -> DetectionDataset:
    """Four images with an object each; the class of the last one doesn't occur."""
    entries = [entry(1), entry(2, 2), entry(3, 3, category_id=18), entry(4, 4, category_id=18)]
    file, images = write_coco(tmp_path, entries, num_images=4, categories=CATEGORIES)
    return read_coco(file, images)


def evaluate_found(data: DetectionDataset, *found: tuple[int, int, float, list[float]]) -> Any:
    """Metrics of detections (image id, label, score, box as corners)."""
    evaluator = CocoEvaluator(data.ground_truth(), diagnose=True)
    for image_id in data.table.image_ids.tolist():
        own = [one for one in found if one[0] == image_id]
        result = {
            "labels": torch.tensor([one[1] for one in own], dtype=torch.int64),
            "scores": torch.tensor([one[2] for one in own]),
            "boxes": torch.tensor([one[3] for one in own]).reshape(-1, 4),
        }
        evaluator.update([image_id], [result])
    return evaluator.compute()


def some_errors(data: DetectionDataset) -> Any:
    """Image 1 is right, 2 has another class, 3 another object besides, 4 nothing."""
    box = [10.0, 5.0, 30.0, 13.0]
    return evaluate_found(
        data,
        *(
            (1, 0, 0.6, box),
            (2, 1, 0.9, box),
            (3, 1, 0.7, box),
            (3, 0, 0.8, [0.0, 20.0, 9.0, 39.0]),
        ),
    )


def pictures_of(page: str) -> list[PIL.Image.Image]:
    sources = re.findall(r'<img[^>]* src="([^"]*)"', page)
    assert all(source.startswith("data:image/") for source in sources)
    contents = [base64.b64decode(source.split(",", 1)[1]) for source in sources]
    return [PIL.Image.open(io.BytesIO(content)) for content in contents]


def rows_of(page: str, title: str) -> list[list[str]]:
    """The text of a table's cells, of the section with that title."""
    section = page.split(f">{title}</h2>")[1].split("<h2")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub("<.*?>", "", cell)) for cell in row] for row in cells]


def test_page_says_what_was_found(data: DetectionDataset, tmp_path: Path) -> None:
    """Numbers, both tables, the matrix, and pictures beside their targets, in one file."""
    metrics = some_errors(data)
    file = tmp_path / "report.html"
    write_report(file, metrics, data, "a <model>", "my data")
    page = file.read_text(encoding="utf-8")
    assert "<h1>a &lt;model&gt; on my data</h1>" in page
    assert "4 images, 4 objects, 3 classes" in page
    assert f"<b>{100 * metrics['AP50']:.1f}</b><span>AP50</span>" in page
    assert "2 of 4 objects were found" in page and "with 2 wrong detections" in page
    errors = {row[0]: row[1] for row in rows_of(page, "Kinds of errors")[1:]}
    expected = {"class": "1", "background": "1", "missed": "1", "duplicate": "0"}
    assert expected.items() <= errors.items()
    classes = rows_of(page, "Classes")
    assert classes[0][0] == "class" and classes[0][-4:] == [
        "threshold",
        "precision",
        "recall",
        "F1",
    ]
    assert [row[0] for row in classes[1:]] == [NASTY, LONG, "$x$ & _y"]  # lowest AP first
    assert classes[3][1:5] == ["0", "–", "–", "–"] and classes[3][5] == "–"
    matrix = {row[0]: row[1:] for row in rows_of(page, "Confused classes")[1:]}
    assert matrix[NASTY] == ["1", "1", "", ""] and matrix["no target"] == ["1", "", "", ""]
    curves, pictures = pictures_of(page)[:2], pictures_of(page)[2:]
    assert [picture.size for picture in pictures] == [(SMALLEST, round(0.8 * SMALLEST))] * 2 * (
        3 + 2
    )
    assert curves[0].format == "PNG" and pictures[0].format == "JPEG"
    assert page.index("2.png") < page.index("4.png") < page.index("3.png")
    assert f"{html.escape(LONG)} with score 0.90, but the target is" in page
    assert "with score 0.80, no target" in page


def test_page_is_self_contained(data: DetectionDataset, tmp_path: Path) -> None:
    """Nothing is loaded or run, whatever the classes are called; the only address is a link."""
    write_report(tmp_path / "report.html", some_errors(data), data)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and html.escape(NASTY, quote=False) in page.replace("&#34;", '"')
    assert not re.search(r"<(link|iframe|object)|@import|url\(", page)
    assert re.findall(r"https?://[^\"]*", page) == ["https://arxiv.org/abs/2008.08115"]


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    """The file stays small, and boxes are where they were: the target's edge is at a fifth."""
    large = {"id": 1, "file_name": "1.png", "height": 1600, "width": 2000}
    entries = [entry(1, bbox=[400, 200, 800, 320])]
    file, images = write_coco(tmp_path, entries, num_images=1, images=[large])
    PIL.Image.new("RGB", (2000, 1600), "gray").save(images / "1.png")
    data = read_coco(file, images)
    found = evaluate_found(data, (1, 1, 0.9, [400.0, 200.0, 1200.0, 520.0]))
    write_report(tmp_path / "report.html", found, data)
    pictures = pictures_of((tmp_path / "report.html").read_text(encoding="utf-8"))[2:]
    assert len(pictures) == 2 * 2
    for picture in pictures:
        assert picture.size == (LARGEST, round(LARGEST * 0.8))
        row = np.asarray(picture.convert("RGB")).astype(int)[120]
        is_drawn = np.abs(row - 128).max(-1) > 40
        edges = np.flatnonzero(is_drawn) * 2000 / LARGEST
        assert edges.min() == pytest.approx(400, abs=12) and edges.max() == pytest.approx(
            1200, abs=12
        )


def test_pictures_of_thin_images(tmp_path: Path) -> None:
    """A side that would become less than a pixel stays one."""
    thin = {"id": 1, "file_name": "1.png", "height": 1, "width": 3000}
    file, images = write_coco(tmp_path, [], num_images=1, images=[thin])
    PIL.Image.new("RGB", (3000, 1)).save(images / "1.png")
    data = read_coco(file, images)
    found = evaluate_found(data, (1, 1, 0.9, [400.0, 0.0, 1200.0, 1.0]))
    write_report(tmp_path / "report.html", found, data)
    pictures = pictures_of((tmp_path / "report.html").read_text(encoding="utf-8"))[2:]
    assert {picture.size for picture in pictures} == {(LARGEST, 1)}


def test_subset_and_lost_image(data: DetectionDataset, tmp_path: Path) -> None:
    """Images are found by id; one that is gone by now is said, and doesn't end the report."""
    metrics = some_errors(data.subset([1, 2]))
    Path(data.images.name(1)).unlink()
    write_report(tmp_path / "report.html", metrics, Subset(data, [1, 2]))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "can&#39;t be read again" in page and "2.png" in page
    assert len(pictures_of(page)) == 2 + 2 * 2


def test_other_images(data: DetectionDataset, tmp_path: Path) -> None:
    """A data set without the images of the errors isn't the one that was evaluated."""
    with pytest.raises(ValueError, match="has no image 2; give the one that was evaluated"):
        write_report(tmp_path / "report.html", some_errors(data), data.subset([0]))


def test_no_pictures_of_a_stream(data: DetectionDataset, tmp_path: Path) -> None:
    """A sentence is in their place."""
    content = Path(data.images.name(0)).read_bytes()
    row = {"image": content, "objects": {"bbox": [[10, 5, 20, 8]], "category": [0]}}
    rows = IterableDataset.from_generator(lambda: iter([row]))
    stream = StreamedDataset(rows, 4, "coco_xywh", data.id2label)
    for images in (None, stream):
        write_report(tmp_path / "report.html", some_errors(data), images)
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert page.count("the images were streamed") == 2 and len(pictures_of(page)) == 2


def test_nothing_found(data: DetectionDataset, tmp_path: Path) -> None:
    """The page says so first, and has no thresholds."""
    write_report(tmp_path / "report.html", evaluate_found(data), data)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "No detection scores above its class" in page
    assert "contradicts the targets" in page
    assert all("–" in row for row in rows_of(page, "Classes")[1:])


def test_matrix_of_many_classes_is_left_out(tmp_path: Path) -> None:
    """It would be unreadable; the confused pairs stay."""
    categories = [{"id": number, "name": f"kind {number}"} for number in range(101)]
    file, images = write_coco(tmp_path, [entry(1)], categories=categories)
    data = read_coco(file, images)
    found = evaluate_found(data, (1, 7, 0.9, [10.0, 5.0, 30.0, 13.0]))
    write_report(tmp_path / "report.html", found, data)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "matrix of 101 classes is left out" in page
    assert "<b>kind 3</b> found as <b>kind 7</b>: 1 of 1" in page.replace("\n", "")


def test_metrics_without_diagnosis(tmp_path: Path) -> None:
    """Plain metrics have nothing to show."""
    with pytest.raises(ValueError, match="call evaluate with diagnose=True"):
        write_report(tmp_path / "report.html", {"AP": 0.5})
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("width", [375, 1280])
def test_page_in_a_browser(data: DetectionDataset, tmp_path: Path, width: int) -> None:
    """The page isn't wider than the window, and its images are shown, without any request."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright, which drives the browser, isn't installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    write_report(tmp_path / "report.html", some_errors(data), data)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=NEVER * 1000
        )
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.set_default_timeout(NEVER * 1000)
        requests: list[str] = []
        page.on("request", lambda request: requests.append(request.url))
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        shown = "[...document.images].every(image => image.complete && image.naturalWidth > 0)"
        assert page.evaluate(shown)
        browser.close()
    assert [one for one in requests if not one.startswith(("file:", "data:"))] == []
