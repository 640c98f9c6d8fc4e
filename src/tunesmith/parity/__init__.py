"""Every exported form beside the model that was trained."""
