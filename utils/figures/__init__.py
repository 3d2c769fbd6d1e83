"""The papers' plots and tables, and the codecs that models are compared with.

Imports utils/evaluation and what lies below.
"""
