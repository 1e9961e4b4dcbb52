"""llama.cpp as an engine, through ctypes: any architecture that llama.cpp runs.

Struct layouts of llama.cpp change between versions, so none is declared here. :mod:`.abi` measures them in
the library that is loaded, and :mod:`.self_test` checks the result in another process.
"""
