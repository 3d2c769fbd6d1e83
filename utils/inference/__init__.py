"""The models as they are, faster, in less memory and alike on every machine.

Imports models/ and what lies below; nothing in models/ knows of it.
"""
