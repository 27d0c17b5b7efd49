"""Files of all kinds as rows."""
