"""From the best checkpoint to the forms that are deployed."""
