"""Backends: a graph to something that runs."""
