"""What an export is held to: replayed prompts, logits, the card that says so."""
