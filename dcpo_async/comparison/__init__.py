"""`dcpo compare`: finished and running runs side by side, as one HTML report."""
