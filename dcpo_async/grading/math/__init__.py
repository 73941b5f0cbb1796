"""What two mathematical answers mean, and whether it is the same."""
