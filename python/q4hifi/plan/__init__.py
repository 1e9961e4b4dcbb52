"""Decides the type of every tensor in the output: options, recipes and rules. Sizes are exact to the byte."""
