"""`mesh doctor`: the facts of a mesh, and the diagnosis."""
