"""Pages in headless Chromium: what a script sees in them, and what the console says."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
_OUTCOME = re.compile(r'<pre id="outcome">(.*?)</pre>', re.S)
_FRAME = """<!doctype html><meta charset="utf-8">
<iframe style="width: {width}px; height: 800px"></iframe>
<script>
const frame = document.querySelector("iframe");
frame.srcdoc = {page};
frame.onload = () => {{
  const document_ = frame.contentDocument, window_ = frame.contentWindow;
  const outcome = ((document, window) => {{ {script} }})(document_, window_);
  outcome.requests = window_.performance.getEntriesByType("resource").map((entry) => entry.name);
  const out = document.createElement("pre");
  out.id = "outcome";
  out.textContent = JSON.stringify(outcome);
  document.body.append(out);
}};
</script>"""


def browser():
    """The browser's program; a test that has none is skipped."""
    program = next((path for name in NAMES if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser is here ({', '.join(NAMES)}); apt-get install chromium")
    return program


def visit(page, script, tmp_path, width=1100):
    """Opens a page in a frame of some width and runs a script in it once it is loaded.

    Returns:
        (what the script returned, with "requests", the URLs that the page fetched; the lines of
        the console).
    """
    program = browser()
    path = tmp_path / "frame.html"
    text = json.dumps(page).replace("</", "<\\/")
    path.write_text(_FRAME.format(width=width, page=text, script=script), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    words += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run(
        [program, *words, path.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = _OUTCOME.search(done.stdout)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(unescape(found[1])), said


def check_page(page, tmp_path):
    """Holds a page to what all pages promise: small, quiet, alone, fit for a phone."""
    assert len(page.encode()) < 5 << 20
    width = "return {wide: document.documentElement.scrollWidth, frame: window.innerWidth};"
    for frame in (1100, 360):
        seen, said = visit(page, width, tmp_path, frame)
        assert not said, said
        assert all(url.startswith("data:") for url in seen["requests"]), seen["requests"]
        assert seen["wide"] <= seen["frame"] == frame


SORT = """
const table = document.querySelector("table.sortable%s");
const column = () => [...table.tBodies[0].rows].map((row) => row.cells[%d].textContent.trim());
const seen = {before: column()};
const button = table.tHead.rows[0].cells[%d].querySelector("button");
button.click(); seen.once = column();
button.click(); seen.twice = column();
return seen;
"""


def sorted_by_clicks(page, tmp_path, column, table=""):
    """The texts of a column of a sortable table before and after one and two clicks on its head."""
    seen, said = visit(page, SORT % (table, column, column), tmp_path)
    assert not said, said
    return seen["before"], seen["once"], seen["twice"]
