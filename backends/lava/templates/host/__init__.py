"""Processes that run on the host. A folder of their own: Lava imports every module that stands beside a process's."""
