"""Values of expressions: exact fractions, or many digits."""
