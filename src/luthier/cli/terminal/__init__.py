"""What the commands share: options, progress, tables and the dialogue on the terminal."""
