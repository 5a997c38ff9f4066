"""`diti studio`: a local page to compare two pictures, move attributes and look inside a model."""
