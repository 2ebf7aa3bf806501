"""Names by which a server is called."""

import re

_HOST = r"(\[[0-9a-f:.]+\]|[^\s/@?#:\[\]]+?)\.?(?::\d*)?"  # a name or [IPv6 address], and a port


def name_in(host: str) -> str:
    """The name in a Host header, in small letters and without its port; "" where it is none."""
    found = re.fullmatch(_HOST, host.lower())
    return found[1].strip("[]") if found else ""


def is_name(word: str) -> bool:
    """Whether a word is a name, or an address, and nothing more."""
    host = f"[{word}]" if word.count(":") > 1 else word
    return word != "" and name_in(host) == word.lower()
