"""Tables of tensor types, of the two layouts of Q4_HIFI in a file, and of tensor names and their roles."""
