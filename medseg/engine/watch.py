"""Which fused ops a network really ran."""

from torch.utils._python_dispatch import TorchDispatchMode


class OpWatch(TorchDispatchMode):
    """Counts the fused ops that really ran inside the block: {"eca": {"cpu": 6}}."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, dict[str, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "medseg":
            words = [a for a in args if isinstance(a, str)]
            self._count(name, words[-1] if words else "fused")  # the backend comes last
        elif name.startswith("_scaled_dot_product_"):  # position attention on a GPU is PyTorch's
            self._count("position", args[0].device.type)
        return func(*args, **(kwargs or {}))

    def _count(self, op: str, backend: str) -> None:
        counts = self.seen.setdefault(op, {})
        counts[backend] = counts.get(backend, 0) + 1
