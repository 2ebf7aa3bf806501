"""A server in a process of its own: crowds, bodies without end, slow ones, and how it ends."""

import json
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

from medseg.serve import main
from tests.serve.conftest import ROOT, picture, started

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory of a process")


def talk(url, head, parts=()):
    """Sends a head and parts of a body over a socket of its own; status and sentence."""
    place = urlsplit(url)
    with socket.create_connection((place.hostname, place.port), 20) as line:
        line.sendall(f"POST /predict HTTP/1.1\r\nHost: {place.netloc}\r\n{head}\r\n\r\n".encode())
        for part in parts:
            line.sendall(part)
        head, _, body = line.recv(1 << 16).partition(b"\r\n\r\n")
        while not body:
            body += line.recv(1 << 16)
        return int(head.split()[1]), json.loads(body)["error"]


@LINUX
def test_fifty_at_once_all_get_their_mask_in_bounded_memory(server):
    import httpx

    images = [picture(800, 1000, seed) for seed in range(5)]  # each takes 20 MB and more
    ask = httpx.Client(base_url=server.url, timeout=100)
    with ask, ThreadPoolExecutor(50) as pool:
        alone = [ask.post("/predict", content=image) for image in images]
        before = server.peak()
        start = threading.Barrier(50)

        def one(number):
            with httpx.Client(base_url=server.url, timeout=100) as own:
                start.wait()
                return own.post("/predict", content=images[number % 5])

        found = list(pool.map(one, range(50)))
        health = ask.get("/health")
    assert [each.status_code for each in found] == [200] * 50
    for number, each in enumerate(found):
        assert each.content == alone[number % 5].content
    assert len({each.content for each in alone}) == 5
    assert health.json()["status"] == "ok"
    assert server.peak() - before < 100


GIGABYTE = [b"x" * (1 << 20)] * 1000


@LINUX
@pytest.mark.parametrize(
    ("head", "parts"),
    [
        pytest.param("Content-Length: 1048576000", [], id="said"),
        pytest.param("Content-Length: 1048576000", GIGABYTE, id="said and sent"),
        pytest.param(
            "Transfer-Encoding: chunked", [b"%x\r\n%s\r\n" % (1 << 20, GIGABYTE[0])] * 1000,
            id="not said",
        ),
        pytest.param(
            "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: 1048576000",
            GIGABYTE, id="form",
        ),
    ],
)  # fmt: skip
def test_a_gigabyte_is_refused_and_never_kept(server, head, parts):
    before = server.peak()
    status, sentence = talk(server.url, head, parts)
    assert status == 413
    assert sentence.startswith("the upload is too large, 8 MB are the most here")
    assert server.peak() - before < 20


def test_a_form_without_end_is_refused_where_it_is_too_large(server):
    top = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
    parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in (top, *GIGABYTE[:12])]
    head = "Content-Type: multipart/form-data; boundary=x\r\nTransfer-Encoding: chunked"
    before = server.peak()
    status, sentence = talk(server.url, head, parts)
    assert status == 413 and "8 MB are the most here" in sentence
    assert server.peak() - before < 20


@LINUX
def test_it_listens_at_127_0_0_1_alone(server):
    """127.0.0.2 is this machine too: who listens everywhere answers there."""
    place = urlsplit(server.url)
    assert place.hostname == "127.0.0.1" and place.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", place.port), 5)


def test_clients_that_leave_cost_nothing(server):
    import httpx

    place = urlsplit(server.url)
    image = picture(1000, 1000)
    for sent in (0, 100, len(image)):
        with socket.create_connection((place.hostname, place.port)) as line:
            head = f"Content-Length: {len(image)}\r\nHost: {place.netloc}"
            line.sendall(f"POST /predict HTTP/1.1\r\n{head}\r\n\r\n".encode() + image[:sent])
    for _ in range(100):
        text = httpx.get(f"{server.url}metrics").text
        if "medseg_queued 0.0" in text and "medseg_in_flight 1.0" in text:
            break
        time.sleep(0.05)
    assert "medseg_queued 0.0" in text and 'status="500"' not in text
    assert httpx.post(f"{server.url}predict", content=image, timeout=20).status_code == 200


def test_the_terminal_and_the_end(run):
    """Bound to all addresses it warns; told to stop, it answers what is in and ends with 130."""
    import httpx

    with started(run, "--host", "0.0.0.0") as it:
        assert it.stdout.readline().startswith("fitted: hpddrnet_s, none, a, b <i>")
        port = int(it.stdout.readline().split("/ in a browser")[0].rpartition(":")[2])
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/health", headers={"host": "any.example"}).status_code == 200
        with ThreadPoolExecutor(4) as pool:
            image = picture(1200, 1200)
            asked = [pool.submit(httpx.post, f"{url}/predict", content=image) for _ in range(4)]
            while "medseg_queued 0.0" in httpx.get(f"{url}/metrics").text:
                time.sleep(0.01)
            it.send_signal(signal.SIGINT)
            assert it.wait(20) == 130
            assert [each.result().status_code for each in asked] == [200] * 4
        complained = it.stderr.read()
    assert "warning: --host 0.0.0.0: whoever reaches this machine" in complained
    assert complained.endswith("error: stopped.\n") and "Traceback" not in complained


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        ([], 2, "--weights: name a run: medseg serve runs/x."),
        (["nowhere"], 2, "--weights nowhere: is not there"),
        (["{run}", "--port", "{taken}"], 2, "--port {taken}: another program listens there"),
        (["{run}", "--port", "70000"], 2, "--port 70000: must lie in 0..65535"),
        (["{run}", "--host", "not a host"], 2, "--host not a host: is no address of this"),
        (["{run}", "--host", "a" * 70], 2, "is no address of this machine"),
        (
            ["{run}", "--host", "192.0.2.1", "--port", "0"],
            2,
            "192.0.2.1: is no address of this machine",
        ),
        (["{run}", "--host", ""], 2, "--host: name an address, such as 127.0.0.1"),
        (
            ["{run}", "--allow_hosts", "seg.example", "https://seg.example"],
            2,
            "--allow_hosts https://seg.example: must be a name alone",
        ),
        (["{run}", "--allow-hosts", "seg.example:443"], 2, "--allow_hosts seg.example:443: must"),
        (["{run}", "--queue", "0"], 2, "--queue 0: must be 1 or more"),
        (["{run}", "--max-mb", "-1"], 2, "--max_mb -1: must be 1 or more"),
        (["{run}", "--timeout", "nan"], 2, "--timeout nan: must be a number"),
        (["{run}", "--que", "9"], 2, "--que: unknown flag (did you mean --queue?)"),
        (["{text}"], 3, "is no safetensors file or is damaged"),
    ],
)
def test_what_keeps_it_from_starting(run, tmp_path, capsys, flags, code, words):
    (tmp_path / "a.safetensors").write_text("text")
    with socket.create_server(("127.0.0.1", 0)) as other:
        known = {"run": run, "taken": other.getsockname()[1], "text": tmp_path / "a.safetensors"}
        flags = [flag.format(**known) for flag in flags]
        if "--port" not in flags and len(flags) == 1:
            flags += ["--port", "0"]
        assert main(flags) == code
    said = capsys.readouterr()
    assert words.format(**known) in said.err and "Traceback" not in said.err and not said.out


def test_a_missing_package_is_named(run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([str(run)]) == 2
    assert "serve: needs uvicorn: pip install 'medseg[serve]'." in capsys.readouterr().err


def test_the_flags_of_the_docs_exist():
    import dataclasses
    import re

    from medseg.serve.config import ServeConfig

    text = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    known = {field.name for field in dataclasses.fields(ServeConfig)}
    named = set(re.findall(r"--(\w+)", text)) - {"data", "images", "write"}  # of others
    assert named and named <= known
    defaults = ServeConfig("x")
    for name, value in re.findall(r"`--(\w+)`[\w ]* \((\d+)\)", text):
        assert getattr(defaults, name) == int(value)
