"""From an example to text, token ids and labels: chat templates, tool calls, rows."""
