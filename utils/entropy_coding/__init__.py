"""Symbols to bytes and back: the range coder, its frequency tables, and the way of symbols from a GPU and to it.

Imports numpy, numba and utils/jit.py, nothing else of the project; transfers.py alone knows torch.
"""
