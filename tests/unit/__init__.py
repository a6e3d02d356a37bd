"""Modules without a process or a database beside them."""
