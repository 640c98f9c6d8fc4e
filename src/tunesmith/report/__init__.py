"""The page that a person wants to look at: everything a run found out, in one self-contained HTML file."""
