"""An image to a file and back: file format, search for a target, folders of images.

Imports utils/inference, utils/data and what lies below.
"""
