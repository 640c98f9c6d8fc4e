"""What other programs write: a file a dialect, each into the turns and tools of OpenAI's chat completions.

A dialect of turns (blocks, calls, keys) may stand in any row of a file and is read turn by turn. A dialect of rows (an export,
a log, a tree) is a format of its own, told by its keys like the formats of ``formats.py``. Whatever is read as something else
is said in the notes of the reading; what has no place in a conversation is an error, and never dropped in silence.
"""
