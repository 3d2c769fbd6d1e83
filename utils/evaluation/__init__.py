"""Rate and distortion of checkpoints over images, as numbers, tables and pages.

Imports utils/codec and what lies below.
"""
