"""Attention as its authors publish it, in plain PyTorch, and two networks with it: what
`medseg.fuse` makes faster. Names of classes and parts are the authors', the code is ours."""
