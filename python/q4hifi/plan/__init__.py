"""What every tensor of a model becomes: options, recipes and rules, with sizes exact to the byte."""
