"""The parts of the PyTorch tracer: record a run, find its time and batch axes, fold its steps, build the graph."""
