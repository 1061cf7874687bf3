"""The C backend: event-driven C99 in a folder that builds anywhere."""
