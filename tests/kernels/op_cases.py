"""Every op as a function of a map and what it learns, and the bare operators' arguments."""

import torch

from medseg.kernels import (
    attention_gate,
    eca_attention,
    mde_concat,
    mde_filter,
    position_attention,
    split_apply,
    split_attention,
    split_pool,
    triplet_apply,
    triplet_attention,
    triplet_pool,
)


def eca_args(dtype=torch.float32):
    return [torch.randn(3, dtype=dtype), torch.randn(1, dtype=dtype)]


def triplet_args(dtype=torch.float32):
    conv = torch.randn(3, 2, 3, 3, dtype=dtype) / 3
    return [conv, torch.rand(3, dtype=dtype) + 0.5, torch.randn(3, dtype=dtype)]


MDE_GAINS = torch.tensor([[0.5, 2.0, 1.5, 1.0]])


def split_args(dtype=torch.float32):
    shapes = ((3,), (3,), (3,), (3,), (1,))
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def split_parts_args(dtype=torch.float32):
    return [torch.randn(1, dtype=dtype) for _ in range(5)]


def eca(x, *learned):
    return eca_attention(x, *learned)


def eca_pooled(x, *learned):
    out, summed = eca_attention(x, *learned, residual=x.flip(1), pool=2)
    return out + torch.nn.functional.avg_pool2d(summed, 2)


def mde_args(dtype=torch.float32):
    return [torch.randn(1, 4, dtype=dtype)]


def mde(x, gains):
    return mde_filter(x, gains)


def mde_up(x, gains):
    return mde_concat(2 * x[:, :1], x, gains)[:, 1:] + x[:, :1]


def gate(x, a, b):
    total, product = attention_gate(x * a.to(x.dtype), x.flip(1), x * b.to(x.dtype))
    return total + 2 * product


def position_args(dtype=torch.float32):
    return [torch.randn(1, dtype=dtype), torch.randn(1, dtype=dtype)]


def position(x, a, b):
    tokens = x.flatten(2).mT
    out = position_attention(tokens * a.to(x.dtype), tokens, tokens * b.to(x.dtype))
    return out.mT.reshape(x.shape)


def position_narrow(x, a, b):
    """Values wider than keys."""
    tokens = x.flatten(2).mT
    out = position_attention(
        tokens[..., :1] * a.to(x.dtype), tokens[..., :1], tokens * b.to(x.dtype), scale=1.0
    )
    return out.mT.reshape(x.shape)


def triplet(x, conv, weight, bias, training=False):
    zeros, ones = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    return triplet_attention(x, conv, weight, bias, zeros, ones, training=training)


def triplet_train(x, *learned):
    return triplet(x, *learned, training=True)


def split(x, fc1, weight, bias, fc2, fc2_bias, training=False):
    """Two splits made of x, and layers for any number of channels; eps keeps two images apart."""
    zeros, ones = torch.zeros_like(weight).detach(), torch.ones_like(weight).detach()
    ramp = torch.arange(2 * x.shape[1], dtype=fc1.dtype) / 4
    head = (fc1[:, None] * ramp[: x.shape[1]], None, weight, bias, zeros, ones)
    tail = (ramp[:, None] * fc2, ramp * fc2_bias)
    both = torch.cat((x, 1 - x), 1)
    return split_attention(both, *head, *tail, training=training, eps=0.1)


def split_train(x, *learned):
    return split(x, *learned, training=True)


def triplet_parts(x, conv, weight, bias):
    """Pooling and application around gates of a convolution, as a layer with its own norm."""
    maps = []
    for i, pooled in enumerate(triplet_pool(x)):
        u = torch.nn.functional.conv2d(pooled.to(conv.dtype), conv[i : i + 1], padding=1)
        maps.append((u * weight[i] + bias[i]).sigmoid())
    return triplet_apply(x, maps)


def split_parts(x, fc1, weight, bias, fc2, fc2_bias):
    """Two splits made of x, and gates that depend on what was pooled."""
    both = torch.cat((x, 1 - x), 1)
    pooled = split_pool(both).to(fc1.dtype)
    hidden = (pooled[:, :1] * fc1[:1] * weight[:1] + bias[:1] + pooled[:, 1:2] * fc2[:1]).sin()
    ramp = torch.arange(both.shape[1], dtype=fc1.dtype) / 4
    return split_apply(both, (hidden * ramp + fc2_bias).sigmoid())


OPS = {
    "eca": (eca, eca_args),
    "eca_pooled": (eca_pooled, eca_args),
    "mde": (mde, mde_args),
    "mde_up": (mde_up, mde_args),
    "gate": (gate, position_args),
    "position": (position, position_args),
    "position_narrow": (position_narrow, position_args),
    "triplet": (triplet, triplet_args),
    "triplet_train": (triplet_train, triplet_args),
    "triplet_parts": (triplet_parts, triplet_args),
    "split": (split, split_args),
    "split_train": (split_train, split_args),
    "split_parts": (split_parts, split_parts_args),
}


def fewest_images(fn):
    """One number an image is all that the batch norm of a split attention sees."""
    return 2 if fn is split_train else 1


def leaves(make, dtype=torch.float32, shape=(2, 5, 6, 7)):
    tensors = [torch.randn(shape, dtype=dtype), *make(dtype)]
    return [t.requires_grad_() for t in tensors]


def raw_calls():
    """The registered operators with arguments, for opcheck."""
    for cut in (False, True):
        x = torch.randn(2, 6, 7, 8)[:, 1:] if cut else torch.randn(2, 5, 7, 8)
        for layout in (torch.contiguous_format, torch.channels_last):
            y = (x if cut else x.contiguous(memory_format=layout)).detach().requires_grad_()
            weight, bias = (t.requires_grad_() for t in eca_args())
            yield torch.ops.medseg.eca.default, (y, None, weight, bias, 1, "cpu")
            residual = torch.randn_like(y).requires_grad_()
            yield torch.ops.medseg.eca.default, (y, residual, weight, bias, 2, "cpu")
            for up, gains in ((None, MDE_GAINS), (residual, torch.randn(5, 4).requires_grad_())):
                arguments = (y, up, gains, (3, 5, 7), "binomial", "zero", "cpu")
                yield torch.ops.medseg.mde.default, arguments
            learned = [t.requires_grad_() for t in triplet_args()]
            running = (torch.zeros(3), torch.ones(3))
            for training in (True, False):
                arguments = (y, *learned, *running, training, 1e-5, True, "cpu")
                yield torch.ops.medseg.triplet.default, arguments
            yield torch.ops.medseg.triplet_pool.default, (y, 3, "cpu")
            positions = y.shape[0] * (5 * 7 + 5 * 8 + 7 * 8)
            gates = torch.rand(positions).requires_grad_()
            yield torch.ops.medseg.triplet_apply.default, (y, gates, 2, "cpu")
            gates = torch.rand(2, 4).requires_grad_()
            yield torch.ops.medseg.split_pool.default, (y[:, :4], 2, "cpu")
            yield torch.ops.medseg.split_apply.default, (y[:, :4], gates, 2, "cpu")
            yield torch.ops.medseg.split.default, split_call(y[:, :4], training=True)
            yield torch.ops.medseg.split.default, split_call(y[:, :4], training=False)


def split_call(x, training):
    """Arguments of the bare operator, with a batch norm in front where it may have one."""
    front = [None, None] if training else [torch.rand(4), torch.randn(4)]
    first = [torch.randn(2, 2).requires_grad_(), torch.randn(2)]
    norm = [torch.rand(2).requires_grad_(), torch.randn(2), torch.zeros(2), torch.ones(2)]
    second = [torch.randn(4, 2).requires_grad_(), None]
    return (x, *front, *first, *norm, *second, 2, 1, training, 1e-5, "cpu")
