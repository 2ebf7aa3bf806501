"""The page for sets of every kind."""

import math
import re

import numpy as np
import pytest

from medseg.config import TrainConfig
from medseg.console import Journal
from medseg.engine import learning_rate
from medseg.report import Picture, Report, Speed, best_and_worst, curves_file, render, score_lines
from medseg.train.results import score_table
from tests.browser import check_page, sorted_by_clicks, visit


def _report(names, channels, dtype):
    draw = np.random.default_rng(0)
    mask = np.kron(draw.integers(0, len(names) + 1, (4, 3)), np.ones((10, 10))).astype(np.uint8)
    top = np.iinfo(dtype).max
    pixels = draw.integers(0, top, (40, 30, channels)).astype(dtype)
    scores = [[0.5] * len(names), [None] * len(names), [1.0] * len(names)]
    columns = {name: f"dice_{k}" for k, name in enumerate(names)}
    row = {"epoch": 1, "loss": 1.0, "val_loss": 1.0, "dice": 0.5, "seconds": 1.0}
    history = [row | dict.fromkeys(columns.values(), 0.5)]
    facts = dict.fromkeys(("system", "processor", "cores", "gpus", "commit", "variables"), None)
    facts |= {"command": ["train"], "versions": {"torch": "2"}, "ops": {"eca": "cpu"}}
    facts |= {"device": "cpu", "threads": 2, "huge_pages": "on", "seconds": 3.0}
    picture = Picture("<a>.png", pixels, mask, mask.T.reshape(mask.shape), scores[0])
    return Report(
        title="run",
        config={"model": "m<b>", "epochs": 1, "precision": "fp32"},
        facts=facts,
        data={"name": "d", "train": 1, "val": 3},
        names=names,
        columns=columns,
        history=history,
        images=[("<a>.png", "g"), ("b.png", ""), ("c.png", "g")],
        scores=scores,
        best_epoch=1,
        best=[picture],
        worst=[picture],
        confusion=np.eye(len(names) + 1, dtype=np.int64) * 7 + 1,
        speed=Speed((2, 3, 8, 8), 2.0, 5.0, 1_000_000, 3_000_000),
    )


@pytest.mark.parametrize(
    ("names", "channels", "dtype"),
    [(["one"], 1, np.uint16), (["a", "b"], 3, np.uint8), (list("abcdefghij"), 3, np.uint8)],
)
def test_page(names, channels, dtype):
    report = _report(names, channels, dtype)
    page = render(report)
    assert "m&lt;b&gt;" in page
    assert "&lt;a&gt;.png" in page
    assert "data:image/jpeg;base64," in page
    assert "2.50" in page and "3.0 MB" in page
    assert curves_file(report.history, report.columns).lstrip().startswith("<?xml")


def test_page_in_a_browser(tmp_path):
    report = _report(["a", "b"], 3, np.uint8)
    report.scores = [[0.5, 0.6], [None, None], [0.9, 1.0]]
    page = render(report)
    check_page(page, tmp_path)
    before, once, twice = sorted_by_clicks(page, tmp_path, 2, "#images")
    assert before == ["0.550", "0.950", "–"]  # the worst first, those without a value last
    assert (once, twice) == (["0.950", "0.550", "–"], before)
    _, once, twice = sorted_by_clicks(page, tmp_path, 0, "#images")
    assert (once, twice) == (["<a>.png", "b.png", "c.png"], ["c.png", "b.png", "<a>.png"])


@pytest.mark.parametrize(
    "fault",
    [
        '<img src="http://localhost:9/a.png" alt="">',
        "<script>nowhere();</script>",
        '<div style="width: 700px">too wide for a phone</div>',
    ],
)
def test_browser_sees_faults(tmp_path, fault):
    page = render(_report(["a"], 3, np.uint8)).replace("</main>", f"{fault}</main>")
    with pytest.raises(AssertionError):
        check_page(page, tmp_path)


def test_outlines_of_errors_or_of_classes(tmp_path):
    script = """
    const shown = () => [...document.querySelectorAll(".picture path")]
      .filter((path) => window.getComputedStyle(path).display !== "none")
      .map((path) => path.classList[0]);
    const seen = {errors: [...new Set(shown())]};
    document.querySelector("#by-class").click();
    seen.classes = [...new Set(shown())];
    return seen;
    """
    seen, said = visit(render(_report(["a"], 3, np.uint8)), script, tmp_path)
    assert not said
    assert set(seen["errors"]) == {"tp", "fp", "fn"}
    assert set(seen["classes"]) == {"mask", "pred"}


def test_outlines_are_of_what_was_found_false_and_missed():
    mask = np.zeros((8, 12), int)
    predicted = mask.copy()
    mask[2:4, 1:3], predicted[2:4, 1:3] = 1, 1  # found
    mask[2:4, 5:7] = 2  # missed
    mask[2:4, 9:11], predicted[2:4, 9:11] = 1, 2  # of the wrong class: both
    mask[6:, :2], predicted[6:, :2] = -1, 1  # nobody knows
    svg = Picture("x", np.zeros((8, 12, 1), np.uint8), mask, predicted, [1.0, 0.0]).svg()
    paths = dict(re.findall(r'class="(\w+) e" d="([^"]+)"', svg))
    starts = {kind: path.count("M") for kind, path in paths.items()}
    assert starts == {"tp": 1, "fp": 1, "fn": 2}


def test_names_inside_the_page_are_single_and_found(monkeypatch):
    from matplotlib.backends.backend_svg import RendererSVG

    # of ten letters and digits, any order can come: one like those of the axes, for once
    monkeypatch.setattr(RendererSVG, "_make_id", lambda self, kind, content: f"{kind}abcde12345")
    page = render(_report(["a", "b"], 3, np.uint8))
    names = re.findall(r'\bid="([^"]+)"', page)
    asked = re.findall(r'(?:url\(|href=")#([^")]+)', page)
    assert asked
    assert set(asked) <= set(names)
    assert {name.partition("-")[0] for name in asked} == {"dice", "image", "loss", "spread"}


def test_score_lines_count_what_is_left_out():
    whole, first, second = score_lines([[1.0, None], [0.5, 0.0]], ["a", "b"])
    assert (whole.values, whole.left_out) == (3, 1)
    assert whole.dice == pytest.approx(0.5)
    assert first.dice == 0.75
    assert (second.dice, second.iou, second.left_out) == (0.0, 0.0, 1)
    assert [line.name for line in score_lines([[1.0]], ["only"])] == ["only"]


def test_class_without_values_has_no_score_in_the_terminal(capsys):
    report = _report(["a", "never"], 3, np.uint8)
    report.scores = [[0.5, None], [1.0, None]]
    Journal().show(score_table(report))
    said = capsys.readouterr().out
    assert "nan" not in said
    assert re.search(r"never +- +- +2 *\n", said)


def test_best_and_worst_share_no_image():
    assert best_and_worst([[0.1], [None], [0.9], [0.5]]) == ([2], [0, 3])
    assert best_and_worst([[k / 9] for k in range(9)], best=2, worst=3) == ([8, 7], [0, 1, 2])
    assert best_and_worst([[None]]) == ([], [])


def test_learning_rate_warms_up_and_falls():
    rates = [learning_rate(TrainConfig(lr=1.0), step, 10, 100) for step in range(1, 101)]
    assert rates[4] == max(rates) == 1.0
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.01)
    assert math.isfinite(learning_rate(TrainConfig(lr=1.0), 1, 1, 1))
