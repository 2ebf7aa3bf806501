"""`python -m medseg.models`: the list, as a table and as JSON."""

import json

import pytest

import medseg
from medseg.cli import main as medseg_main
from medseg.models.__main__ import main

SPECIFIED = {  # parameters and multiplications in 10**9, of one class at 256 x 256
    "dra_net": (31_745_231 - 6 * 65, 48.729),  # the specification counts seven classes
    "dpsau2_net": (60_697_357, 55.581),
}


def test_json_has_every_network(capsys):
    assert main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == medseg.list_models()
    for row in rows:
        assert row["parameters"] > 0 and row["macs"] > 0 and row["paper"] and row["fused"]
        assert 2015 < row["year"] < 2030
    for row in rows:
        if row["name"] in SPECIFIED:
            parameters, macs = SPECIFIED[row["name"]]
            assert row["parameters"] == parameters
            assert round(row["macs"] / 1e9, 3) == macs


def test_table(capsys):
    assert main(["dra_net*"]) == 0
    text = capsys.readouterr().out
    for word in ("dra_net_s", "31,744,841", "48.729", "2025", "eca_attention", "triplet_attention"):
        assert word in text
    assert medseg_main(["models", "dra_net_s", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == ["dra_net_s"]


def test_no_such_name(capsys):
    assert main(["unet"]) == 2
    assert "no network is named 'unet'; known: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--yaml"])
