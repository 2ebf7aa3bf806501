"""medseg.kernels: fused attention ops, each with a PyTorch reference beside it.

Installed as ``medseg.kernels``. Imported from a checkout as plain ``kernels``, it hands out the
very same modules, so that no op is registered twice.
"""

import importlib
import sys

if __name__ != "medseg.kernels":
    _real = importlib.import_module("medseg.kernels")
    for _name, _module in list(sys.modules.items()):
        if _name == "medseg.kernels" or _name.startswith("medseg.kernels."):
            sys.modules[_name.removeprefix("medseg.")] = _module
else:
    # torch first: it loads the OpenMP runtime that the compiled kernels then share.
    import torch  # noqa: F401

    from ._backend import backend_report, use_backend
    from ._cpu_launch import keep_pages
    from .eca.op import eca_attention
    from .eca.reference import eca_reference
    from .gate.op import attention_gate
    from .gate.reference import gate_reference
    from .mde.op import mde_concat, mde_filter
    from .mde.reference import mde_reference
    from .position.op import position_attention
    from .position.reference import position_reference
    from .split.op import split_attention
    from .split.parts import split_apply, split_pool
    from .split.reference import split_reference
    from .triplet.op import triplet_attention
    from .triplet.parts import triplet_apply, triplet_pool
    from .triplet.reference import triplet_reference

    __all__ = [
        "attention_gate",
        "backend_report",
        "eca_attention",
        "eca_reference",
        "gate_reference",
        "keep_pages",
        "mde_concat",
        "mde_filter",
        "mde_reference",
        "position_attention",
        "position_reference",
        "split_apply",
        "split_attention",
        "split_pool",
        "split_reference",
        "triplet_apply",
        "triplet_attention",
        "triplet_pool",
        "triplet_reference",
        "use_backend",
    ]
