"""What someone who did not write Luthier does to it."""
