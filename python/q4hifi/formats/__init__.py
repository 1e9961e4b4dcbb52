"""Tables about tensor types, the layout of Q4_HIFI in a file, and what tensor names mean."""
