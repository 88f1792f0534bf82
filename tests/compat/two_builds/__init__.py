"""The build before beside this one, in one mesh of processes that are killed (docs/compatibility.md).

The build before is taken from the repository's history; its nodes, supervisors and clients run its own code.
"""
