"""What other tools' configurations say, as keys of a recipe: read, never run, and no key of theirs is passed over.

Each tool has a file with a function ``translate``, which takes the keys one by one and says of each what became of it. What
needs the rows (steps, warm-up, held-out rows) is left to ``course.py``, which is told what the rows are. A key that no file
knows is refused by name: a key that is silently ignored is how a run becomes another run.

Refused: importing the tools and asking their own parsers, which pin other versions of the libraries that a run needs; tables of
keys in a file of data, which cannot say that two keys mean something together.
"""
