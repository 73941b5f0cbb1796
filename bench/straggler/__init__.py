"""What one actor that is slow, or that never answers, costs a fleet."""
