"""One process: brought up, signalled, watched, ended."""
