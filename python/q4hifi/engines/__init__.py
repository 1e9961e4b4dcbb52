"""Engines run models: our own runtime, and llama.cpp, behind one protocol
(:mod:`q4hifi.engines.protocol`)."""
