"""A data folder that is refused."""

import pytest

from medseg.data import load_table
from medseg.errors import UserError


def refused(root, *parts, code=3, **options):
    """Loads, and checks that one sentence comes that holds all parts; returns it."""
    with pytest.raises(UserError) as caught:
        load_table(root, **options)
    sentence = str(caught.value)
    for part in parts:
        assert part in sentence
    assert caught.value.code == code
    assert sentence.endswith(".") and "\n" not in sentence
    return sentence
