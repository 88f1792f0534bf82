"""Who may do what: roles, the accounts of a mesh, and the configurations that are made of them (docs/security.md). Pure."""
