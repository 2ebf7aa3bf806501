"""Networks by name: what is listed, and what is refused in which words."""

import pytest

from medseg import create_model, list_models
from medseg.errors import UserError
from medseg.models import nearest_sizes, register
from medseg.models.dra_net import DRANet


def test_lists_names():
    assert {"dra_net", "dra_net_s"} <= set(list_models())
    assert list_models() == sorted(list_models())
    assert list_models("dra_*_s") == ["dra_net_s"]
    assert list_models("no such thing") == []


def test_option_replaces_preset():
    assert create_model("dra_net_s", width=8).state_dict()["enc1.proj.bias"].numel() == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "dranet"}, r"model 'dranet' is unknown \(did you mean 'dra_net'\?\); known: dra"),
        ({"name": "DRA_NET"}, r"did you mean 'dra_net'\?"),
        ({"name": "xyz"}, "model 'xyz' is unknown; known: dra_net, dra_net_s"),
        ({"widht": 8}, r"has no option 'widht' \(did you mean 'width'\?\); it has width, eca_k"),
        ({"classes": 0}, "classes must be a whole number of at least 1, got 0"),
        ({"classes": 2.5}, "classes must be a whole number of at least 1, got 2.5"),
        ({"in_channels": -1}, "in_channels must be a whole number of at least 1, got -1"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        create_model(**{"name": "dra_net_s", **arguments})
    assert isinstance(caught.value, ValueError)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)


def test_refuses_a_name_twice():
    with pytest.raises(ValueError, match="'dra_net' is registered already"):
        register("dra_net")(DRANet)


@pytest.mark.parametrize(
    ("size", "nearest"), [(1, (16, 16)), (15, (16, 16)), (17, (16, 32)), (32, (32, 32))]
)
def test_nearest_sizes(size, nearest):
    assert nearest_sizes(size, 16) == nearest
