"""`--json`: one document on standard output and nothing else."""

import json
import subprocess
from pathlib import Path

import pytest

from medseg.document import one_document, print_document
from medseg.engine import Engine

from .conftest import rows_of


def test_document_of_a_run(train):
    run = train("--json", "--name", "told")
    assert run.code == 0, run.err
    document, folder = json.loads(run.out), run.folders[0]
    assert document["run"] == str(folder)
    assert "epoch 2/2" in run.err and "all classes" in run.err
    for path in document["files"].values():
        assert Path(path).is_file() and Path(path).is_relative_to(folder)
    rows = rows_of(folder / "metrics.csv")
    best = max(rows, key=lambda row: float(row["dice"]))
    assert document["best_epoch"] == int(best["epoch"])
    for key, row in (("best", best), ("last", rows[-1])):
        assert document[key].keys() == row.keys()
        assert document[key]["dice"] == pytest.approx(float(row["dice"]), abs=1e-6)
    assert document["mean"]["dice"] == pytest.approx(document["best_dice"], abs=1e-5)
    assert list(document["classes"]) == ["cytoplasm", "nucleus"]
    assert document["seconds"] > 0 and document["stopped"] is None
    assert "json: false" in (folder / "config.yaml").read_text()


def test_document_of_a_run_that_failed_late(train, monkeypatch):
    whole = Engine.train_epoch

    def breaks(engine, tick):
        if engine.epoch == 1:
            raise engine.diverged(float("nan"), "in epoch 2")
        return whole(engine, tick)

    monkeypatch.setattr(Engine, "train_epoch", breaks)
    run = train("--json")
    document = json.loads(run.out)
    assert run.code == 3
    assert document["stopped"] in run.err.replace("\n", "")
    assert document["last"]["epoch"] == document["best_epoch"] == 1


def test_refused_flags_print_no_document(train):
    run = train("--json", "--epochs", 0)
    assert (run.code, run.out) == (2, "")


def test_what_is_printed_beside_goes_to_stderr(capfd):
    with pytest.raises(ValueError, match="late"), one_document(True) as tell:
        print("by Python")
        subprocess.run(["echo", "by a child"], check=True)
        tell({"score": float("nan"), "parts": [1.5, float("inf")], "name": "Zellkörper"})
        raise ValueError("late")
    said = capfd.readouterr()
    assert json.loads(said.out) == {"score": None, "parts": [1.5, None], "name": "Zellkörper"}
    assert said.out.isascii()
    assert "by Python" in said.err and "by a child" in said.err
    print_document(1)
    assert capfd.readouterr().out == "1\n"
