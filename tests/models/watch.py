"""What the tests of whole networks look at from outside: ops that run, memory kept for backward."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_COPIES = ("aten::clone", "aten::copy_", "aten::_to_copy", "aten::contiguous")
_KEYS = {"attention_gate": "gate"}  # the others are called by their first word


class Ops(TorchDispatchMode):
    """Inside the block: the fused ops that ran, and the shapes of maps that were copied."""

    def __init__(self):
        super().__init__()
        self.fused, self.copied = set(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name.startswith("medseg::"):
            self.fused.add(name.removeprefix("medseg::").removesuffix("_backward"))
        if name in _COPIES:
            self.copied += [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def key(function):
    """The short key of a public function: eca_attention -> eca."""
    return _KEYS.get(function, function.partition("_")[0])


def kept_bytes(model, run):
    """Bytes that autograd keeps for the backward of ``run()``, parameters and buffers aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no other gets the address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = run()
    del out
    return sum(storage.nbytes() for storage in kept.values())
