"""Forms of answers around the usual ones: cases, congruences, conditions, sets by name, letters of choices."""
