"""Which problems come next: samplers as explicit states with `init` and `draw`."""
