"""Parity: is an exported form the model that was trained?

prompts     what is asked
reference   the training stack: prompts, continuations, logits
task        the dev rows that every form answers
figures     distances between distributions, on numbers alone
checks      what they say of a form
measure     a form opened, asked and judged
"""
