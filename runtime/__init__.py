"""What runs beside an artefact: traces, encoders and the runner. NumPy only, Python 3.10 and newer."""
