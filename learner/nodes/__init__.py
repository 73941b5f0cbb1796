"""A learner on several machines: who they are, what they tell each other, when their ranks start and end."""
