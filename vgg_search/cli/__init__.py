"""Flags, environment and file become a `Config`, and the commands are run.

Nothing is imported from here.
"""
