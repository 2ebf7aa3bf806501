"""Who may ask, what every answer carries, what is counted, and what happens when all is taken."""

import asyncio
import contextlib
import re
import socket
import threading
import time

import pytest

from tests.serve.conftest import picture

PAGES = {
    "/": "text/html",
    "/style.css": "text/css",
    "/page.js": "text/javascript",
    "/health": "application/json",
    "/metrics": "text/plain",
}


@pytest.mark.parametrize("path", [*PAGES, "/predict", "/nothing"])
def test_every_answer_has_the_headers_of_security(client, path):
    answer = client.get(path)
    if path in PAGES:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(PAGES[path])
        assert client.head(path).status_code == 200
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    for name, value in (
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
        ("cache-control", "no-store"),
    ):
        assert answer.headers[name] == value
    assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers


def test_the_page_asks_only_its_own_address_and_quotes_names(client):
    page = client.get("/").text
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,", "style.css", "page.js"]
    assert "b &lt;i&gt;" in page and "<i>" not in page
    assert not re.search(r"<style|style=|<script>|onclick", page)
    for path in ("/", "/style.css", "/page.js"):
        assert "http://" not in client.get(path).text and "https://" not in client.get(path).text
    style = client.get("/style.css").text
    assert ".c2 {" in style and ".c3 {" not in style and "prefers-color-scheme: dark" in style


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("127.0.0.1", 200),
        ("127.0.0.1.:1", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("evil.example@127.0.0.1x", 421),
        ("[::1", 421),
        ("127.0.0.1/", 421),
        ("127.0.0.1?x", 421),
        ("127.0.0.1#x", 421),
        ("a@127.0.0.1", 421),
        ("", 421),
    ],
)
def test_names_that_were_bent_to_this_address(client, host, status):
    answer = client.get("/health", headers={"host": host})
    assert answer.status_code == status
    if status == 421:
        assert "--allow_hosts" in answer.json()["error"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://127.0.0.1:8000", 200),
        ("http://127.0.0.1:9000", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("", 403),
    ],
)
def test_pages_of_other_sites(client, origin, status):
    answer = client.post("/predict", content=picture(), headers={"origin": origin})
    assert answer.status_code == status


def test_any_name_is_still_a_name(network, tmp_path):
    """What listens to the whole network asks for no name in particular."""
    from fastapi.testclient import TestClient

    from medseg.serve.app import make_app
    from medseg.serve.config import ServeConfig

    app = make_app(ServeConfig("x"), network, tmp_path, None)
    with TestClient(app, "http://any.example") as client:
        for host, status in (("[fe80::1]:80", 200), ("a/b", 421), ("a@b", 421), ("a b", 421)):
            assert client.get("/health", headers={"host": host}).status_code == status
        bare = client.get("/health", headers={"host": "", "origin": "null"})
        assert bare.status_code == 403


@pytest.mark.parametrize(
    ("word", "fine"),
    [
        ("Seg.example.org", True),
        ("::1", True),
        ("seg_1", True),
        ("https://seg.example.org", False),
        ("seg.example.org:443", False),
        ("ab.cd:443", False),
        ("seg.example.org/", False),
        ("seg example", False),
        ("", False),
    ],
)
def test_names_to_allow_can_match(word, fine):
    from medseg.serve.names import is_name, name_in

    assert is_name(word) == fine
    if fine:
        assert name_in(f"[{word}]:80" if ":" in word else f"{word}.:80") == word.lower()


def test_which_names_are_taken(run):
    from medseg.serve.config import ServeConfig
    from medseg.serve.run import _hosts

    with socket.create_server(("127.0.0.1", 0)) as inner, socket.create_server(("", 0)) as outer:
        plain, named = ServeConfig("x"), ServeConfig("x", allow_hosts=["Seg.example"])
        assert _hosts(plain, inner) == {"localhost", "127.0.0.1", "::1"}
        assert _hosts(plain, outer) is None
        for listening in (inner, outer):
            assert "seg.example" in (_hosts(named, listening) or ())


def values(text, name):
    """{labels: value} of a metric."""
    return {k: float(v) for k, v in re.findall(rf"^{name}(\S*) (\S+)$", text, re.MULTILINE)}


def test_metrics_count(client):
    before = client.get("/metrics").text
    client.post("/predict", content=picture())
    client.post("/predict", content=b"text")
    client.get("/nothing/a")
    client.get("/nothing/b")
    after = client.get("/metrics").text

    def grown(name, labels=""):
        return values(after, name)[labels] - values(before, name).get(labels, 0)

    assert grown("medseg_requests_total", '{path="/predict",status="200"}') == 1
    assert grown("medseg_requests_total", '{path="/predict",status="415"}') == 1
    assert grown("medseg_requests_total", '{path="other",status="404"}') == 2
    assert grown("medseg_errors_total", '{status="404"}') == 2
    assert grown("medseg_request_seconds_count", '{path="/predict"}') == 2
    assert grown("medseg_predict_seconds_count") == 1
    assert values(after, "medseg_in_flight") == {"": 1}
    assert values(after, "medseg_queued") == {"": 0}
    assert values(after, "process_resident_memory_bytes")[""] > 1e8
    assert "nothing" not in after


def test_a_full_queue_says_when_to_come_again(client, network, monkeypatch):
    monkeypatch.setattr(network, "taken", network.most)
    answer = client.post("/predict", content=picture())
    assert answer.status_code == 503 and 1 <= int(answer.headers["retry-after"]) <= 60
    assert "4 images are waiting already: ask again in" in answer.json()["error"]
    assert client.get("/health").status_code == 200


def test_work_that_nobody_waits_for_is_left(network):
    """The second in the queue goes away; the first is done all the same."""
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow():
        begun.set()
        go_on.wait(10)
        done.append("slow")

    async def both():
        forever, gone = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(network.run(slow, forever.wait()))
        second = asyncio.create_task(network.run(lambda: done.append("left"), gone.wait()))
        await asyncio.to_thread(begun.wait, 10)
        gone.set()
        with pytest.raises(Exception, match="nobody waits"):
            await second
        go_on.set()
        await first

    asyncio.run(both())
    assert done == ["slow"]


def test_places_come_back(network):
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), network.place():
            assert network.taken == 1
            raise error
    assert network.taken == 0


def test_an_upload_that_stops_is_told_so(tmp_path):
    from fastapi import HTTPException, Request

    from medseg.serve.uploads import receive

    parts = iter([{"type": "http.request", "body": b"\x89PNG", "more_body": True}])

    async def stops():
        for part in parts:
            return part
        await asyncio.sleep(100)
        return {}

    request = Request({"type": "http", "headers": []}, stops)
    with pytest.raises(HTTPException, match=r"was not in after 0\.05 seconds") as caught:
        asyncio.run(receive(request, tmp_path, 0.05, 1e6))
    assert caught.value.status_code == 408


@contextlib.contextmanager
def listening(client, monkeypatch, seconds):
    """The application on a socket, and how many may connect."""
    import uvicorn

    from medseg.serve import run
    from medseg.serve.config import ServeConfig

    monkeypatch.setattr(run, "_IDLE", seconds)
    settings = run.settings_of(client.app, ServeConfig("x", queue=4))
    server = uvicorn.Server(settings)
    with socket.create_server(("127.0.0.1", 0), backlog=200) as line:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [line]})
        thread.start()
        try:
            assert settings.limit_concurrency is not None
            yield line.getsockname(), settings.limit_concurrency
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHos"])
def test_silent_clients_lose_their_places(client, monkeypatch, sent):
    import httpx

    with listening(client, monkeypatch, 1) as (place, most), contextlib.ExitStack() as lines:
        url = f"http://{place[0]}:{place[1]}/health"
        silent = []
        for _ in range(most + 10):
            silent.append(lines.enter_context(socket.create_connection(place, 20)))
            silent[-1].sendall(sent)
        assert httpx.get(url).status_code == 503
        assert {line.recv(1) for line in silent} == {b""}
        assert httpx.get(url).status_code == 200


def test_a_kept_connection_must_ask_again(client, monkeypatch):
    """Its second head comes byte by byte and never ends; an upload may take longer than a head."""
    with listening(client, monkeypatch, 0.5) as (place, _):
        head = f"Host: {place[0]}\r\nContent-Length: {len(picture())}\r\n\r\n"
        with socket.create_connection(place, 20) as line:
            line.sendall(f"POST /predict HTTP/1.1\r\n{head}".encode())
            time.sleep(0.8)
            line.sendall(picture())
            assert line.recv(1 << 16).startswith(b"HTTP/1.1 200")
            begun = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() < begun + 10:
                    line.sendall(b"G")
                    time.sleep(0.05)
            assert time.monotonic() < begun + 5


def test_a_client_that_reads_nothing_loses_its_answer(client, monkeypatch):
    """The answer is more than the system keeps for it; others are answered meanwhile."""
    import httpx

    monkeypatch.setattr("medseg.serve.connection._UNREAD", 1)
    image = picture(1000, 1000)
    head = f"POST /predict?write=probabilities HTTP/1.1\r\nContent-Length: {len(image)}\r\nHost: "
    with listening(client, monkeypatch, 5) as (place, _), socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(20)
        line.connect(place)
        line.sendall(f"{head}{place[0]}\r\n\r\n".encode() + image)
        url = f"http://{place[0]}:{place[1]}/metrics"
        seen, until = [], time.monotonic() + 20
        while 2.0 not in seen or seen[-1] != 1:  # the other answer, and this one
            seen.append(values(httpx.get(url).text, "medseg_in_flight")[""])
            assert time.monotonic() < until, seen
            time.sleep(0.05)
        taken = 0
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(1 << 20):
                taken += len(part)
        assert taken < 6_000_000  # 3 classes, 2 bytes each


def test_answers_that_are_read_slowly_come_whole(client, monkeypatch):
    """Each part within its time, all of them in more."""
    monkeypatch.setattr("medseg.serve.connection._UNREAD", 2)
    image = picture(1000, 1000)
    head = f"POST /predict?write=probabilities HTTP/1.1\r\nContent-Length: {len(image)}\r\nHost: "
    with listening(client, monkeypatch, 0.5) as (place, _), socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        line.settimeout(20)
        line.connect(place)
        line.sendall(f"{head}{place[0]}\r\n\r\n".encode() + image)
        taken = 0
        while part := line.recv(1 << 16):
            taken += len(part)
            time.sleep(0.03)
        assert taken > 6_000_000
