"""The server as a process: benchmarks/serving.py, which the benchmarks use as well."""

from benchmarks.serving import ROOT, Server

__all__ = ["ROOT", "Server"]
