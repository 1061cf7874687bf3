"""The Lava backend: a readable Python package for Loihi 2 and its simulator."""
