"""What an export is given, and the parity check that it answers as the run does."""
