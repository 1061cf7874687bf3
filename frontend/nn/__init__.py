"""Trainable spiking layers, public as `spikec.nn`."""
