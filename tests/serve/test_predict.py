"""What `medseg predict` writes comes from the server bit for bit, and errors as sentences."""

import base64
import errno
import json

import cv2
import numpy as np
import pytest

from medseg.inference import FileImage, Predictor, load_trained
from medseg.predict import main
from medseg.predict.write import write_files
from medseg.predict.writers import KINDS
from tests.data.test_hostile import bmp, jpeg, png, tiff
from tests.inference.conftest import write_run
from tests.serve.conftest import DATA, picture

SETS = ("nuclei_dsb2018", "superalloy_sem", "wbc_pbc", "wbc_tecom")


def predicted(run, image, folder, kinds=("masks",)):
    """The bytes that the command writes."""
    words = ["--images", image, "--weights", run, "--out", folder, "--write", *kinds]
    assert main([*map(str, words), "--overwrite"]) == 0
    return [(folder / kind / f"{image.stem}{KINDS[kind][1]}").read_bytes() for kind in kinds]


def post(client, content, name="cell.png", **query):
    return client.post("/predict", params=query, files={"image": (name, content)})


@pytest.mark.parametrize("name", SETS)
def test_a_real_image_gives_the_mask_of_predict(client, run, tmp_path, name):
    folder = DATA / name / "images"
    if not folder.is_dir():
        pytest.skip(f"the real images are not here ({folder})")
    image = sorted(folder.iterdir())[0]
    (mask,) = predicted(run, image, tmp_path)
    answer = post(client, image.read_bytes(), image.name)
    assert answer.status_code == 200, answer.text
    assert answer.content == mask
    assert len(set(cv2.imdecode(np.frombuffer(mask, np.uint8), -1).ravel())) > 1  # pyright: ignore


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
def test_every_kind_is_as_predict_writes_it(client, run, tmp_path, ending):
    pytest.importorskip("roifile", reason="roifile is missing: pip install 'medseg[formats]'")
    image = tmp_path / f"cell{ending}"
    image.write_bytes(picture(50, 41, ending=ending))
    kinds = [kind for kind in KINDS if kind != "imagej"]
    for kind, content in zip(kinds, predicted(run, image, tmp_path, kinds), strict=True):
        answer = post(client, image.read_bytes(), image.name, write=kind)
        assert answer.content == content, kind
        assert f"cell{KINDS[kind][1]}" in answer.headers["content-disposition"]
    assert post(client, image.read_bytes(), write="imagej").content[:2] == b"PK"


def test_an_image_may_be_the_body_itself(client, run, tmp_path):
    (tmp_path / "cell.png").write_bytes(picture())
    (mask,) = predicted(run, tmp_path / "cell.png", tmp_path)
    assert client.post("/predict", content=picture()).content == mask


def test_values_above_255_and_large_images_for_the_page(tmp_path):
    """The view has classes, not values, and every second pixel of what is wider than a screen."""
    from medseg.serve.view import ViewWriter

    run = write_run(tmp_path / "deep", mask_values=[0, 300, 60000])
    predictor = Predictor(load_trained(run))
    image = tmp_path / "wide.png"
    image.write_bytes(picture(31, 2500))
    each = FileImage(image, 3)
    write_files(each, predictor.slabs(each), {tmp_path / "view": ViewWriter}, predictor.trained)
    found = json.loads((tmp_path / "view").read_bytes())
    mask, classes, shown = (
        cv2.imdecode(np.frombuffer(base64.b64decode(found[name]), np.uint8), cv2.IMREAD_UNCHANGED)
        for name in ("mask", "classes", "image")
    )
    assert mask is not None and classes is not None and shown is not None
    assert (found["height"], found["width"]) == mask.shape == (31, 2500)
    assert mask.dtype == np.uint16
    values = np.array([0, 300, 60000])
    assert np.array_equal(values[np.asarray(classes, int)], mask[::2, ::2])
    pixels = cv2.imdecode(np.frombuffer(image.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None and np.array_equal(shown, pixels[::2, ::2])
    assert found["pixels"] == [int((mask == value).sum()) for value in (0, 300, 60000)]


HUGE = "pixels, and 1 million are the most here: cut it, or use medseg predict."


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        pytest.param(png(10000, 10000), 413, f"has 10000x10000 {HUGE}", id="100 megapixels"),
        pytest.param(bmp(65000, 65000), 413, f"has 65000x65000 {HUGE}", id="bmp"),
        pytest.param(jpeg(20000, 20000), 413, f"has 20000x20000 {HUGE}", id="jpeg"),
        pytest.param(tiff(30000, 30000), 413, f"has 30000x30000 {HUGE}", id="tiff"),
        pytest.param(b"no image at all\n" * 9, 415, "is no PNG, JPEG, TIFF or BMP", id="text"),
        pytest.param(picture()[:-20], 422, "cannot be read as an image", id="cut PNG"),
        pytest.param(picture()[:40], 422, "cannot be read as an image", id="cut after its head"),
        pytest.param(picture()[:12], 422, "is damaged, it does not say its size", id="cut in it"),
        pytest.param(picture(ending=".jpg")[:-99], 422, "cannot be read as an", id="cut JPEG"),
        pytest.param(b"", 400, "no image came", id="empty"),
        pytest.param(b"x" * 2_000_001, 413, "too large, 2 MB are the most here", id="large"),
    ],
)
def test_what_is_no_bearable_image_is_refused(client, home, content, status, words):
    for name in ("../a/<b>\x1b[1mcell.png", "x" * 500 + ".png"):
        answer = post(client, content, name)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), answer.text
        sentence = answer.json()["error"]
        assert words in sentence and sentence.endswith(".") and "mask" not in sentence
        assert str(home) not in sentence and "../" not in sentence and "\x1b" not in sentence
        assert len(sentence) < 300
    assert client.post("/predict", content=content).status_code == status
    assert not list(home.iterdir())


def test_turned_pages_and_other_formats(client, tmp_path):
    from PIL import Image

    pixels = Image.fromarray(np.full((8, 8, 3), 99, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels.save(tmp_path / "turned.jpg", exif=exif)
    pixels.save(tmp_path / "pages.tif", save_all=True, append_images=[pixels])
    pixels.save(tmp_path / "other.gif")
    for name, status, words in (
        ("turned.jpg", 422, "turned.jpg is turned or mirrored"),
        ("pages.tif", 422, "pages.tif holds several images"),
        ("other.gif", 415, "other.gif is no PNG"),
    ):
        answer = post(client, (tmp_path / name).read_bytes(), name)
        assert answer.status_code == status and words in answer.json()["error"]
        assert "mask" not in answer.json()["error"]
    smaller = {"NewSubfileType": 1}
    for tag, status in (({}, 422), (smaller, 200)):  # a pyramid is one image
        pages = two_pages(tmp_path / "pyramid.tif", tag)
        assert post(client, pages, "pyramid.tif").status_code == status


def two_pages(path, tags):
    """A TIFF of two pages, the second with a tag."""
    tifffile = pytest.importorskip("tifffile", reason="pip install 'medseg[formats]'")
    pixels = np.full((16, 16, 3), 99, np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, photometric="rgb", metadata=None)
        kind = 1 if tags else 0
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=kind, metadata=None)
    return path.read_bytes()


def test_forms_and_words_that_make_no_sense(client):
    for answer, status, words in (
        (client.post("/predict", data={"image": "text"}, files={}), 415, "no PNG"),
        (client.post("/predict", files={"a": b"1", "b": b"2"}), 400, "Too many files"),
        (post(client, picture(), write="../x"), 400, "write=../x: unknown; known: masks, "),
        (client.get("/predict"), 405, "by POST"),
        (client.get("/etc/passwd"), 404, "/ is the page"),
        (client.get("/docs"), 404, "/ is the page"),
        (client.get("/health/", follow_redirects=False), 404, "/ is the page"),
    ):
        assert answer.status_code == status and words in answer.json()["error"]
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body in (
        b"",
        b"--x\r\n\r\n",
        b"--x",
        b"nonsense",
        b"--x\r\nContent-Disposition: a\r\n\r\n",
    ):
        answer = client.post("/predict", content=body, headers=form)
        assert answer.status_code == 400 and answer.json()["error"], body
    bare = client.post("/predict", content=b"1", headers={"content-type": "multipart/form-data"})
    assert bare.status_code == 400


def test_what_nobody_foresaw_is_told_without_a_word_of_the_inside(client, monkeypatch):
    def fail(*args):
        raise RuntimeError("secret of /home/x")

    monkeypatch.setattr("medseg.serve.app.write_files", fail)
    answer = post(client, picture())
    assert answer.status_code == 500 and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json() == {
        "error": "the server failed at this request; what happened stands on its terminal."
    }


def test_a_full_disk_does_not_name_the_folder(client, home, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medseg.runs.os.replace", full)
    answer = post(client, picture())
    assert answer.status_code == 500 and str(home) not in answer.text
