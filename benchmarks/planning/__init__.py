"""Plans of many devices, held against published figures."""
