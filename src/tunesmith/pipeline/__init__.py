"""What happens to a run: a table of stages, one file a stage, and the verbs that need no run.

``table.py`` holds the stages of a recipe in order, ``stage.py`` says when one is done and carries out a plan, ``inputs.py``
names what each is made from. Every other file is a stage or a verb, named as it is on the command line; a stage's file has
``execute(run, recipe, session, argument)``. This is the only place where two stages meet.
"""
