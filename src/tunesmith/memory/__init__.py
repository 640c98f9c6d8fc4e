"""What a run takes of memory and disk, reckoned before it begins and without torch."""
