"""What is wrong, before a run and during it, and what to do about it; looks and changes nothing."""
