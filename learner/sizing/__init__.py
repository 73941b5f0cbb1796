"""What a run takes of memory and disk, known before anything is loaded."""
