"""Pages to watch runs and to read them: a reader of what runs write anyway, in a process of its own."""
