"""The page in headless Chromium: what a person does, sees and takes home."""

import base64
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from tests.browser import browser
from tests.serve.conftest import DATA, picture
from tests.serve.test_predict import predicted

_DROP = """([name, text]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name));
  for (const kind of ["dragenter", "dragover", "drop"]) {
    const about = { dataTransfer, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent(kind, about));
  }
}"""
_CANVAS = "document.getElementById('canvas').toDataURL().split(',')[1]"


@pytest.fixture(scope="module")
def chromium():
    reason = "playwright is missing: pip install 'medseg[test]'"
    api = pytest.importorskip("playwright.sync_api", reason=reason)
    program = browser()
    with api.sync_playwright() as playwright:
        words = ["--no-sandbox", "--disable-gpu"]
        window = playwright.chromium.launch(executable_path=program, args=words)
        yield window
        window.close()


@pytest.fixture
def page(chromium, server):
    """The page, and what the console said and the page asked for."""
    context = chromium.new_context(viewport={"width": 1100, "height": 800})
    tab = context.new_page()
    said, asked = [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(server.url)
    yield SimpleNamespace(tab=tab, said=said, asked=asked)
    context.close()


def drop(page, content, name="cell.png"):
    page.tab.evaluate(_DROP, [name, base64.b64encode(content).decode()])


def seen(page):
    """What the canvas shows, (H, W, 3) RGB."""
    return decoded(base64.b64decode(page.tab.evaluate(_CANVAS))).astype(int)


def decoded(content):
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    assert found is not None
    return found[:, :, ::-1]


def taken(page, button):
    """Name and bytes of what a button gives."""
    with page.tab.expect_download() as waiting:
        page.tab.get_by_role("button", name=button).click()
    return waiting.value.suggested_filename, waiting.value.path().read_bytes()


def images():
    """A drawn image, and a real one where there is one."""
    yield "drawn.png", picture(60, 80)
    folder = DATA / "wbc_tecom" / "images"
    if folder.is_dir():
        image = sorted(folder.iterdir())[0]
        yield image.name, image.read_bytes()


@pytest.mark.parametrize(
    ("name", "content"), [pytest.param(*each, id=each[0]) for each in images()]
)
def test_drop_see_switch_and_take(page, server, run, tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    written = predicted(run, path, tmp_path, ("masks", "overlays"))
    mask, overlay = decoded(written[0])[:, :, 0], decoded(written[1]).astype(int)
    drop(page, content, name)
    page.tab.get_by_role("img", name=f"{name}, coloured: a, b <i>").wait_for()
    assert (
        page.tab.get_by_role("status")
        .inner_text()
        .startswith(f"{name}: {mask.shape[1]}x{mask.shape[0]} pixels in ")
    )
    assert abs(seen(page) - overlay).max() <= 2
    present = [k for k, value in ((1, 128), (2, 255)) if (mask == value).any()]
    assert present
    for k, value in ((1, 128), (2, 255)):
        label = page.tab.get_by_role("checkbox").nth(k - 1).locator("xpath=..")
        assert label.locator(".share").inner_text() == share((mask == value).mean())
    shown = decoded(content).astype(int)
    box = page.tab.get_by_role("checkbox").nth(present[0] - 1)
    box.press(" ")  # by the keyboard
    off = mask == (128, 255)[present[0] - 1]
    now = seen(page)
    assert np.array_equal(now[off], shown[off]) and abs(now[~off] - overlay[~off]).max() <= 2
    box.press(" ")
    page.tab.get_by_label("Opacity").fill("100")
    found = seen(page)[mask == (128, 255)[present[0] - 1]]
    assert (found == found[0]).all() and found[0].tolist() in ([29, 242, 230], [255, 198, 26])
    stem = name.removesuffix(".png")
    assert taken(page, "Download mask") == (f"{stem}.png", written[0])
    given, picture_ = taken(page, "Download overlay")
    assert given == f"{stem}_overlay.png" and np.array_equal(decoded(picture_), seen(page))
    assert page.said == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in page.asked), page.asked


def share(part):
    return f"{100 * part:.{2 if part < 0.01 else 1}f} %"


def test_errors_are_sentences_and_the_next_image_is_taken(page):
    alert = page.tab.get_by_role("alert")
    for name, content, words in (
        ("notes.txt", b"no image", "notes.txt is no PNG, JPEG, TIFF or BMP image"),
        ("cut.png", picture()[:-30], "cut.png cannot be read as an image"),
        ("large.png", b"\0" * 8_000_001, "large.png is larger than 8 MB."),
    ):
        drop(page, content, name)
        alert.filter(has_text=words).wait_for()
        assert page.tab.get_by_role("status").inner_text() == ""
        assert not page.tab.locator("#result").is_visible()
    assert not [line for line in page.said if "status of 4" not in line]
    page.tab.get_by_label("Drop an image here or choose one").set_input_files(
        {"name": "cell.tif", "mimeType": "image/tiff", "buffer": picture(ending=".tif")}
    )
    page.tab.get_by_role("img", name="cell.tif").wait_for()
    assert not alert.is_visible()
    page.tab.route("**/predict*", lambda route: route.abort())
    drop(page, picture())
    alert.filter(has_text="The server does not answer; is it running?").wait_for()


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_phones_and_can_be_read_in_light_and_dark(page, width, scheme):
    page.tab.set_viewport_size({"width": width, "height": 800})
    page.tab.emulate_media(color_scheme=scheme)
    drop(page, picture(), "a_long_name_without_a_place_to_break_" * 3 + ".png")
    page.tab.get_by_role("img", name="coloured").wait_for()
    assert page.tab.evaluate("document.documentElement.scrollWidth") == width
    colours = "(e) => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    for element in (page.tab.get_by_role("button", name="Download mask"), page.tab.locator("body")):
        front, back = element.evaluate(colours)
        assert contrast(front, back) >= 4.5, (front, back)


def contrast(*colours):
    """Of two CSS colours, as WCAG 2.2 has it."""
    lights = []
    for text in colours:
        parts = [int(part) / 255 for part in text[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)
