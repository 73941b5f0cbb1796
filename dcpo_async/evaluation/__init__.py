"""What an evaluation consists of: results on disk, figures with their confidence intervals, tables, progress."""
