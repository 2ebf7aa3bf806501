"""What `medseg serve` does: opens a network and a port, and answers until it is stopped."""

import contextlib
import errno
import ipaddress
import json
import socket
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..inference import Predictor, Trained, load_trained
from .config import ServeConfig

if TYPE_CHECKING:
    import uvicorn

    from ..console import Journal

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_GRACE = 20  # seconds that requests have to end, once the server is told to
_IDLE = 5  # seconds in which the head of a connection's first, or next, request must be in


def serve(config: ServeConfig, journal: "Journal") -> None:
    """Serves until Ctrl-C or SIGTERM; requests that are in are answered first.

    Args:
        config: the settings.
        journal: hears the URL.

    Raises:
        UserError: the weights cannot be used, the port cannot be had, or a package is missing.
        KeyboardInterrupt: it was stopped.
    """
    _refuse_missing_packages()
    import uvicorn

    from .app import make_app
    from .network import Network

    with _listen(config) as listening, tempfile.TemporaryDirectory(prefix="medseg-") as home:
        predictor = _open(config)
        network = Network(predictor, config.queue)
        app = make_app(config, network, Path(home), _hosts(config, listening))
        _announce(config, listening, predictor.trained, journal)
        with contextlib.closing(network):
            uvicorn.Server(settings_of(app, config)).run(sockets=[listening])


def settings_of(app: Any, config: ServeConfig) -> "uvicorn.Config":
    """How the sockets of an application are kept."""
    import uvicorn

    from .connection import Connection

    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        limit_concurrency=2 * config.queue + 64,  # counts connections
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=_GRACE,
    )


def _open(config: ServeConfig) -> Predictor:
    trained = load_trained(str(config.weights), config.device)
    predictor = config.predictor(trained, batch=8)
    predictor.labels(np.zeros((8, 8), np.uint8))  # what fails, fails here; the first is slow
    return predictor


def _refuse_missing_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"serve: needs {error.name}: pip install 'medseg[serve]'.") from None


def _listen(config: ServeConfig) -> socket.socket:
    """A socket that listens already, so that the first request finds it."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except (OSError, UnicodeError) as error:  # the latter from a name that is none
        reason = getattr(error, "errno", None)
        if reason == errno.EADDRINUSE:
            why = "another program listens there; take another, or --port 0 for a free one"
            raise UserError(f"--port {config.port}: {why}.") from None
        if reason == errno.EACCES:
            why = "ports below 1024 are the system's; take a higher one"
            raise UserError(f"--port {config.port}: {why}.") from None
        raise UserError(
            f"--host {config.host}: is no address of this machine; take 127.0.0.1, or 0.0.0.0 for "
            "all of them."
        ) from None


def _is_open(listening: socket.socket) -> bool:
    """Whether others than this machine can reach it."""
    return not ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def _hosts(config: ServeConfig, listening: socket.socket) -> Collection[str] | None:
    """The names by which it may be called; None for any."""
    if _is_open(listening) and not config.allow_hosts:
        return None
    return {name.lower() for name in (*_LOOPBACK, config.host, *config.allow_hosts)}


def _announce(
    config: ServeConfig, listening: socket.socket, trained: Trained, journal: "Journal"
) -> None:
    host, port = listening.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = socket.gethostname()
    url = f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
    if _is_open(listening):
        print(
            f"warning: --host {config.host}: whoever reaches this machine can send images, there "
            "is no password; put a reverse proxy in front that asks for one.",
            file=sys.stderr,
        )
    if config.json:
        classes = dict(zip(trained.names, trained.values, strict=True))
        words = {"url": url, "model": trained.model, "classes": classes}
        print(json.dumps(words, ensure_ascii=False), flush=True)
    else:
        journal.say(f"{trained.name}: {trained.model}, {', '.join(trained.names)}")
        journal.say(f"open {url} in a browser; Ctrl-C stops the server")
