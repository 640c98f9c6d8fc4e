"""Find documents for a question: the rival of tuning where what is missing is knowledge and not form.

In the order of use: ``chunk`` (files to passages), ``corpus`` (a recipe's documents and how a row asks), ``embed`` (texts to
vectors, optional), ``store`` (one SQLite file) or ``qdrant`` (a server), ``measure`` (was the right passage found?).
"""
