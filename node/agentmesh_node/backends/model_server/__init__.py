"""A server of models behind the agents of a node (`--model`): a small one of the mesh's own, or one that an address names."""
