"""The commands that serve what was exported, each as the list of its arguments: ``commands.json``.

A command that is copied from a page is where a name with a space, a rank above vLLM's default of 16 or a forgotten
``--enable-lora`` turns into a server that answers with the base model. So every form makes its commands from the facts of the
run, as lists that ``shlex.join`` prints and a program can start as they are. vLLM names the request's model after the adapter;
the same name is given to every other form, so that a client need not know which it talks to.

Paths are as they are seen from the run directory, and the commands are typed there: a run that is moved keeps its commands.

Refused: one shell line a form, which breaks on the first path that holds a space; paths as the user typed the run's, which name
another directory once it is moved.

Sources: vLLM ``entrypoints/openai/models/protocol.py`` (``LoRAModulePath``), ``config/lora.py`` (``MaxLoRARanks``); llama.cpp
``tools/server/README.md``; docs.ollama.com (CLI); lmstudio.ai/docs (``lms import``).
"""

import shlex
from pathlib import Path

from tunesmith.export.forms.form import Job
from tunesmith.export.forms.table import FORMS
from tunesmith.rundir.records.export import Commands, NotWritten

SHOWN = ("vllm", "llama_server", "ollama")  # after an export; all stand in the file


def commands_of(job: Job) -> Commands:
    """The commands of every form that there is, and why a file that one would need is not there."""
    commands = {name: command for form in FORMS for name, command in form.commands(job).items()}
    refused = {target: result.reason for target, result in job.results.items() if isinstance(result, NotWritten)}
    return Commands(commands=commands, refused=refused, differs=job.differs)


def command_lines(commands: Commands, run: Path) -> list[str]:
    """How to run what was exported, a line each, and where the rest stands.

    Args:
        run: where the run directory is now.
    """
    shown = [commands.commands[name] for name in SHOWN if name in commands.commands]
    lines = [f"serve, in {run}: {' && '.join(shlex.join(argv) for argv in command.argvs)}" for command in shown]
    return [*lines, f"{len(commands.commands)} ways to serve it are in {run / 'export' / 'commands.json'}"]
