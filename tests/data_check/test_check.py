"""What a check says of sets that are whole, of odd folders, and how it says it."""

import json
import re

import cv2
import numpy as np
import pytest

from medseg.cli import main
from medseg.config import parse_flags
from medseg.data_check.check import Options, check
from medseg.data_check.page import render
from medseg.losses import LOSSES
from tests.browser import check_page, sorted_by_clicks

from .conftest import write_rows

CONFESSED = {  # level, topic and files of what the READMEs of the real sets tell of themselves
    "wbc_tecom": [("warning", "copies", ("112.png", "139.png"))],
    "nuclei_dsb2018": [("note", "image", None)],  # many are very dark
}


@pytest.fixture(scope="session")
def real_check(real):
    return check(Options(real))


def test_no_false_alarm_on_a_real_set(real, real_check):
    assert real_check.fits
    found = [(f.level, f.topic, f.files) for f in real_check.findings]
    wanted = CONFESSED.get(real.name, [])
    assert [one[:2] for one in found] == [one[:2] for one in wanted]
    for one, (_, _, files) in zip(found, wanted, strict=True):
        assert files in (None, one[2])


def test_frequencies_are_those_of_the_readme(real, real_check):
    """ "Class balance (pixels): background 68.5 %, ..." """
    counts = [sum(s.pixels for s in line.parts.values()) for line in real_check.classes]
    told = (real / "README.md").read_text().split("Class balance (pixels):")[1].split("\n\n")[0]
    numbers = [float(number) for number in re.findall(r"([\d.]+) %", told)]
    for count in counts[1:]:
        assert min(abs(100 * count / sum(counts) - number) for number in numbers) < 0.15


def test_page_of_a_real_set(real, real_check):
    page = render(real_check)
    assert len(page) < 5 << 20
    assert "Contact sheet" in page and "data:image/jpeg;base64," in page
    assert not any(words in page for words in ("http:", "https:", "src=", "<link", "@import"))
    if real.name == "wbc_tecom":
        assert page.count('class="picture marked"') == 2


def test_page_in_a_browser(small, tmp_path):
    page = render(check(Options(small.root)))
    check_page(page, tmp_path)
    before, once, twice = sorted_by_clicks(page, tmp_path, 1)
    assert before == once == ["0", "128", "255"] == twice[::-1]


def test_small_set_has_nothing_to_mend(small, capsys):
    assert main(["data", "check", str(small.root)]) == 0
    said = capsys.readouterr().out
    assert "a training would start; 0 errors, 0 warnings" in said
    assert "class 128" in said


def test_json_is_one_document_and_the_page_is_written(small, tmp_path, capsys):
    (small.root / "masks" / "cell0.png").unlink()
    page = tmp_path / "page.html"
    code = main(["data", "check", str(small.root), "--json", "--page", str(page)])
    document = json.loads(capsys.readouterr().out)
    assert code == 3 and not document["fits"]
    (found,) = [one for one in document["findings"] if one["level"] == "error"]
    assert "cell0.png has no mask of the same name" in found["says"]
    assert "cell0.png has no mask of the same name" in page.read_text()
    assert document["parts"] == {"train": 4, "val": 1}


def test_suggestion_is_a_set_of_flags_of_the_training(folder):
    for index in range(8):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[0, :3] = 1
        folder.image(f"a{index}.png", 64, 64)
        assert cv2.imwrite(str(folder.root / "masks" / f"a{index}.png"), pixels)
    done = check(Options(folder.root))
    assert "0.073 % of the training pixels" in (done.because or "")
    assert done.loss["loss"] in LOSSES
    parse_flags([word for flag, value in done.loss.items() for word in (f"--{flag}", value)])


def test_twelve_bits_in_sixteen(folder):
    for index in range(6):
        pixels = folder.draw.integers(0, 4096, (20, 24), dtype=np.uint16)
        assert cv2.imwrite(str(folder.root / "images" / f"a{index}.png"), pixels)
        folder.mask(f"a{index}.png")
    (found,) = check(Options(folder.root)).findings
    assert found.topic == "depth" and "of 65535" in found.says
    assert found.remedy and "multiply them by 16" in found.remedy


def test_one_mask_for_two_images(small):
    for part in ("image", "mask"):
        assert (small.root / f"{part}s" / "cell3.png").is_file()
    data = (small.root / "masks" / "cell0.png").read_bytes()
    (small.root / "masks" / "cell3.png").write_bytes(data)
    (found,) = check(Options(small.root)).findings
    assert "cell0.png and cell3.png differ, but their masks are the same" in found.says


def test_class_that_no_part_shows(small):
    rows = [[f"cell{k}.png", f"cell{k}.png", "train" if k < 5 else "val", ""] for k in range(6)]
    write_rows(small.root, rows)
    small.mask("cell5.png", values=(0, 128))
    small.text("classes.json", '{"0": "a", "128": "b", "255": "c", "9": "d"}')
    says = {f.says for f in check(Options(small.root)).findings if f.topic == "classes"}
    assert "no val mask has c (value 255): it is never scored" in says
    assert "no train mask has d (value 9): it is never learned" in says


def test_ignored_value_is_no_class(small):
    done = check(Options(small.root, ignore=255))
    assert [line.value for line in done.classes] == [0, 128]
    assert done.fits


def test_copies_are_bounded(folder):
    """All images alike: no more pairs than are told."""
    pixels = folder.draw.integers(0, 255, (20, 24, 3), np.uint8)
    for index in range(60):
        noise = pixels.copy()
        noise[0, 0] = index
        assert cv2.imwrite(str(folder.root / "images" / f"a{index:02}.png"), noise)
        folder.mask(f"a{index:02}.png")
    done = check(Options(folder.root))
    assert len(done.copies) == 1000
    assert done.findings[-1].says.startswith("there are 1000 pairs of copies or more")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["nowhere"], 3, "nowhere does not exist"),
        (["{root}", "--csv", "none.csv"], 3, "--csv none.csv"),
        (["{root}", "--classes", "7"], 2, "--classes 7"),
        (["{root}", "--group_by", "patient"], 2, "patient"),
        (["{root}", "--page", "{root}/no/page.html"], 3, "page.html"),
    ],
)
def test_refusals(small, capsys, words, code, sentence):
    words = [word.format(root=small.root) for word in words]
    assert main(["data", "check", *words]) == code
    said = capsys.readouterr()
    assert sentence in said.err and "Traceback" not in said.err


@pytest.mark.parametrize("words", [["chekc", "x"], ["check"], ["check", "x", "--classes", "many"]])
def test_wrong_words(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(["data", *words])
    assert stop.value.code == 2


def test_empty_folder_is_all_told(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert "images does not exist" in said and "masks does not exist" in said
