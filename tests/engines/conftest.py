"""Makes the bench importable by name, as pytest puts this folder on the path."""
