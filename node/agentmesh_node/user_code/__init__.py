"""How any function of a user is run: on which thread, how long, and named when it blocks."""
