"""How answers are written: tokens, expressions, their parser, units."""
