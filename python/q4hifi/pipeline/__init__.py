"""From file to file: quantize, export, verify."""
