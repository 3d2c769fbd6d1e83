"""Checkpoint files: reading them without running code, and finding out which model they hold."""
