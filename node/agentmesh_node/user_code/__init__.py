"""Running functions of a user: in which thread, for how long, and reported by name if they block."""
