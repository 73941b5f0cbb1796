"""How fast versions of the weights are written and pulled."""
