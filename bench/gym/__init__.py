"""Every task of Reasoning Gym, tried."""
