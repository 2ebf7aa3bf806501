"""Which layer of a Keras file of DRRMSAN is which of ours.

Keras lists the layers of a network by their distance from its outputs, and numbers those without a
name in every session anew. So names say nothing, and the order says all: it is found here as Keras
finds it, from the graph of the network. Layers without weights have no name in it, yet they count.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from .names import renamed

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_HIDDEN = {"msan1": 3, "msan2": 4, "msan3": 1}  # layers between the gate's maps and its output


def from_keras(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames what `read_h5` found in a file of msan1, msan2 or msan3; anything else stays."""
    variant = keras_variant(state)
    if variant is None:
        return state
    layers = _layers(state)
    names = dict(zip(layers, _as_listed(keras_order(variant), layers), strict=True))

    def ours(key: str) -> str:
        layer, _, leaf = key.rpartition("/")
        return f"{names[layer]}.{_LEAVES.get(leaf, leaf)}"

    return renamed(state, ours)


def keras_variant(state: dict[str, Tensor]) -> str | None:
    """Which of the authors' networks has as many layers as a Keras file; None if none has."""
    if not all("/" in key for key in state):
        return None
    count = len(_layers(state))
    return next((variant for variant in _HIDDEN if len(keras_order(variant)) == count), None)


def _layers(state: dict[str, Tensor]) -> list[str]:
    return list(dict.fromkeys(key.rpartition("/")[0] for key in state))


def as_keras_starts(module: nn.Module) -> None:
    """Gives a layer the numbers that Keras would give it at the start."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _as_listed(ours: list[str], layers: Iterable[str]) -> list[str]:
    """Our names in the order of a file; those of Keras 3 list one kind of layer after the other."""
    kinds = [layer.removeprefix("layers/").rstrip("0123456789").rstrip("_") for layer in layers]
    if not all(layer.startswith("layers/") for layer in layers):
        return ours
    left = {kind: [name for name in ours if _kind(name) == kind] for kind in set(kinds)}
    if any(len(names) != kinds.count(kind) for kind, names in left.items()):
        return ours
    return [left[kind].pop(0) for kind in kinds]


def _kind(name: str) -> str:
    if name.rpartition(".")[2].startswith("bn"):
        return "batch_normalization"
    return "conv2d_transpose" if name.startswith("up") else "conv2d"


def keras_order(variant: str) -> list[str]:
    """Our names of the layers that have weights, in the order in which Keras lists them."""
    graph = _Graph(norm=variant == "msan1")
    x = graph.multires("image", "enc1")
    skips, pooled = [x], ["image"] * 3
    for level in range(1, 4):
        pooled = [graph.hidden(copy) for copy in pooled]
        down = graph.add(f"down{level}", graph.hidden(x))
        kinds = zip(("avg", "max", "min"), pooled, strict=True)
        x = graph.hidden(down, *(graph.add(f"inject{level}.{kind}", copy) for kind, copy in kinds))
        x = graph.multires(x, f"enc{level + 1}")
        skips.append(x)
    x = graph.multires(graph.hidden(x), "enc5")
    maps = []
    for level in range(4, 0, -1):
        k = graph.respath(skips.pop(), f"respath{level}", 5 - level)
        gate = graph.gate(variant, graph.add(f"up{level}", x), k, f"attn{level}")
        x = graph.multires(graph.hidden(gate, k), f"dec{level}")
        if level > 1:
            enlarged = graph.hidden(graph.add(f"side{level}.feat", x))
            maps.append(graph.add(f"side{level}.head", enlarged))
    maps.append(graph.conv(x, "final"))
    return graph.by_depth([*maps, graph.hidden(*maps)])


class _Graph:
    """What each layer reads; our names for layers with weights, "~" in front of those without."""

    def __init__(self, norm: bool) -> None:
        self.norm = norm
        self.reads: dict[str, tuple[str, ...]] = {"image": ()}

    def add(self, name: str, *reads: str) -> str:
        self.reads[name] = reads
        return name

    def hidden(self, *reads: str) -> str:
        return self.add(f"~{len(self.reads)}", *reads)

    def bn(self, x: str, name: str) -> str:
        return self.add(name, x) if self.norm else x

    def conv(self, x: str, name: str, act: bool = True) -> str:
        x = self.bn(self.add(f"{name}.conv", x), f"{name}.bn")
        return self.hidden(x) if act else x

    def multires(self, x: str, name: str) -> str:
        shortcut = self.conv(x, f"{name}.shortcut", act=False)
        t1 = self.conv(x, f"{name}.conv3")
        t2 = self.conv(t1, f"{name}.conv5")
        t3 = self.conv(t2, f"{name}.conv7")
        joined = self.bn(self.hidden(t1, t2, t3), f"{name}.bn_cat")
        return self.bn(self.hidden(self.hidden(shortcut, joined)), f"{name}.bn_out")

    def respath(self, x: str, name: str, steps: int) -> str:
        for i in range(steps):
            shortcut = self.conv(x, f"{name}.{i}.shortcut", act=False)
            added = self.hidden(shortcut, self.conv(x, f"{name}.{i}.main"))
            x = self.bn(self.hidden(added), f"{name}.{i}.bn")
        return x

    def gate(self, variant: str, d: str, k: str, name: str) -> str:
        if variant == "msan1":
            x = self.hidden(self._branch(d, f"{name}.dec"), self._branch(k, f"{name}.skip"))
        else:
            u, v, scores = d, k, []
            for i in range(1, 5):
                u = self.add(f"{name}.dec{i}", u)
                if variant == "msan2":
                    u = self.hidden(u)
                    scores.append(u)
                else:
                    v = self.add(f"{name}.skip{i}", v)
                    scores.append(self.hidden(u, v))
            x = self.hidden(*scores)
        for _ in range(_HIDDEN[variant]):
            x = self.hidden(x)
        return self.add(f"{name}.out", x) if variant == "msan1" else self.hidden(x, d, k)

    def _branch(self, x: str, name: str) -> str:
        j = self.add(f"{name}.joint", self.add(f"{name}.theta", x))
        a = self.add(f"{name}.c3", j)
        b = self.add(f"{name}.c5b", self.add(f"{name}.c5a", j))
        c = self.add(f"{name}.c7c", self.add(f"{name}.c7b", self.add(f"{name}.c7a", j)))
        ends = []
        for end in ("upper", "lower"):
            joined = self.hidden(self.hidden(a, b), c)
            ends.append(self.hidden(self.add(f"{name}.{end}", joined)))
        return self.hidden(*ends)

    def by_depth(self, outputs: list[str]) -> list[str]:
        """Farthest from the outputs first; of equals, what a search from there meets first."""
        met: dict[str, None] = {}
        stack = outputs[::-1]
        while stack:
            name = stack.pop()
            if name not in met:
                met[name] = None
                stack += self.reads[name][::-1]
        depth = dict.fromkeys(met, 0)
        for name in reversed(self.reads):  # a layer is entered after those that it reads
            for read in self.reads[name]:
                depth[read] = max(depth[read], depth[name] + 1)
        weighted = [name for name in met if name[0] != "~" and name != "image"]
        return sorted(weighted, key=lambda name: -depth[name])
