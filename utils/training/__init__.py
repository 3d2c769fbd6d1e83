"""What train.py is made of: steps, losses, optimizers, state, validation, logs.

Imports utils/evaluation and what lies below.
"""
