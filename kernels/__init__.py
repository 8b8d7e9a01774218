"""The Triton kernels of crgan, each beside its reference in PyTorch. The public ops are in `crgan.ops`."""
