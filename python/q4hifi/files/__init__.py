"""Reading and writing files of any format. An output appears at its destination complete, or not at all."""
