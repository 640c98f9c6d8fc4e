"""What a training takes: bytes by term, the fastest plan that fits a card, and what cards can do."""
