"""What `mesh doctor` finds out of a mesh, and what it makes of it."""
