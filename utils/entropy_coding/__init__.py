"""Symbols to bytes and back: the range coder and its frequency tables.

Imports numpy, numba and utils/jit.py, nothing else of the project.
"""
