"""One process: start, signals, health, end."""
