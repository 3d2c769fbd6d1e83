"""Images from disk: reading, padding, lists of files, crops for training.

Imports utils/*.py only.
"""
