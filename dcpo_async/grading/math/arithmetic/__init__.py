"""Whether two expressions are equal: by exact fractions, or by many digits."""
