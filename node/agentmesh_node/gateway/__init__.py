"""What plain NATS requests ask of the mesh: `ask`, `tell`, `event-to` and `poll`, which every node and supervisor serves."""
