"""One agent, owned by this process: mail in, one record out, effects done."""
