"""Networks by name: what is listed, and what is refused in which words."""

import pytest
import torch

from medseg import create_model, list_models
from medseg.errors import UserError
from medseg.models import Network, Outputs, register
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
        ({"name": "dranet"}, r"model 'dranet' is unknown \(did you mean 'dra_net'\?\); known: d"),
        ({"name": "DRA_NET"}, r"did you mean 'dra_net'\?"),
        ({"name": "xyz"}, "model 'xyz' is unknown; known: .*dra_net, dra_net_s"),
        ({"widht": 8}, r"has no option 'widht' \(did you mean 'width'\?\); it has width, att"),
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


class Body(Network):
    size_multiple, least_size = 16, 96

    def forward(self, x):
        x, crop = self.fit(x)
        assert x.shape[2] % 16 == x.shape[3] % 16 == 0 and min(x.shape[2:]) >= 96
        return crop(Outputs(x, (x[:, :1],)))


@pytest.mark.parametrize(("height", "width"), [(96, 96), (1, 97), (113, 40)])
def test_fit_pads_and_cuts_back(height, width):
    x = torch.rand(1, 3, height, width)
    out = Body(3, 1)(x)
    assert torch.equal(out.logits, x) and torch.equal(out.aux[0], x[:, :1])


def test_an_image_of_legal_size_in_the_layout_of_the_maps_is_not_copied():
    x = torch.rand(1, 3, 96, 96).contiguous(memory_format=torch.channels_last)
    assert Body(3, 1).fit(x)[0] is x


def test_fit_repeats_the_last_row_and_column():
    padded, _ = Body(3, 1).fit(torch.arange(3.0).expand(1, 3, 1, 3))
    assert padded.shape == (1, 3, 96, 96)
    assert (padded[..., :2] == torch.tensor([0.0, 1.0])).all() and (padded[..., 2:] == 2).all()
