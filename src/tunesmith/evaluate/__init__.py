"""Score the arms on the sealed test part and decide."""
