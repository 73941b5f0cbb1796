"""How weights spread from machine to machine."""
