"""The command line: one file a command, progress and tables on the terminal."""
