"""One file a metric, by the name it has in results."""
