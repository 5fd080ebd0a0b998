"""What surrounds an optimization: reports, output files, numeric comparison, timing and progress."""
