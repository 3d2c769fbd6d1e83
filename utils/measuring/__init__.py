"""Seconds, bytes and operations: what benchmarks share.

Imports utils/evaluation and what lies below.
"""
