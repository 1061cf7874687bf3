"""`spikec.nn`: layers that train with surrogate gradients in PyTorch and compile exactly. Needs PyTorch."""

from spikec.frontend.nn import *  # noqa: F403  # the list of public names is kept there
from spikec.frontend.nn import __all__ as __all__
