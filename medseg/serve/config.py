"""The flags of a server."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..flags import flag, parse, require, require_least
from ..inference import PredictorConfig
from .names import is_name


@dataclass
class ServeConfig(PredictorConfig):
    """Every setting of a server."""

    weights: str | None = flag(None, "a run folder, or its best.safetensors; or the first word")
    host: str = flag("127.0.0.1", "address to listen at; 0.0.0.0 lets the whole network in")
    port: int = flag(8000, "port to listen at; 0 takes a free one")
    allow_hosts: list[str] = flag(
        list, "host names it may be called by, as those of a reverse proxy", "allow-hosts"
    )
    max_mb: int = flag(64, "megabytes of an upload", "max-mb")
    max_megapixels: float = flag(32.0, "of an image", "max-megapixels")
    queue: int = flag(128, "requests taken in at once; those beyond are answered with 503")
    timeout: float = flag(60.0, "seconds in which an upload must be in")
    json: bool = flag(False, "print one line of JSON with the URL when ready, and nothing else")

    def __post_init__(self) -> None:
        """Refuses values that no server can have."""
        super().__post_init__()
        if self.weights is None:
            raise UserError("--weights: name a run: medseg serve runs/x.")
        if not self.host.strip():
            raise UserError("--host: name an address, such as 127.0.0.1; 0.0.0.0 for all of them.")
        for name in self.allow_hosts:
            rule = (
                "must be a name alone, such as seg.example.org: no https://, port, slash or blank"
            )
            require(is_name(name), "allow_hosts", name, rule)
        require(0 <= self.port < 1 << 16, "port", self.port, "must lie in 0..65535")
        require_least(self, 1, "max_mb", "queue")
        require_least(self, 0.1, "timeout")
        require_least(self, 0.01, "max_megapixels")


def parse_flags(argv: Sequence[str]) -> ServeConfig:
    """Parses the flags of a server; the first word may be the run."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--weights")
    text = "Serves a page and an HTTP API that show images to a trained network: medseg serve RUN."
    return parse(ServeConfig, words, "medseg serve", text)
