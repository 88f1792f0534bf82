"""One agent, owned by this process: mail comes in, one record goes out, effects are performed."""
