"""Where everything of a directory of jobs lies. A job's id is ours, so a path that is made of it stays below the directory."""

import os
import shutil
from pathlib import Path

from tunesmith.formatting import whole_characters
from tunesmith.rundir import RunDir
from tunesmith.serve.jobs.files import Shelf
from tunesmith.serve.jobs.settings import JobsSettings, load_settings
from tunesmith.serve.jobs.store import Job, Store, StoredFile

ALONE, TRAIN, TEST = "rows", "train", "test"  # names of a job's files, by which a split that is given is told


class Place:
    """The directory of the jobs."""

    def __init__(self, directory: Path):
        self.directory = directory.resolve()
        self.store = Store(self.directory / "jobs.sqlite3")
        self.files = self.directory / "files"
        self.worker_lock = self.directory / "worker"
        self.server_lock = self.directory / "server"
        self.worker_file = self.worker_lock / "worker.json"
        self.logs = self.directory / "logs"

    def settings(self) -> JobsSettings:
        """What ``jobs.yaml`` says.

        Raises:
            RecipeError: see ``load_settings``.
        """
        return load_settings(self.directory)[0]

    def shelf(self, settings: JobsSettings) -> Shelf:
        """The files."""
        return Shelf(self.files, settings.quotas)

    def run(self, job_id: str) -> RunDir:
        """The run of a job."""
        return RunDir(self.directory / "runs" / job_id)

    def log(self, job_id: str) -> Path:
        """What the processes of a job said."""
        return self.logs / f"{job_id}.log"

    def rows(self, job_id: str) -> Path:
        """The folder of a job's rows."""
        return self.directory / "rows" / job_id

    def rows_of(self, job: Job) -> Path:
        """What a job's recipe names as its rows: one file, or the folder with a train and a test part."""
        folder = self.rows(job.id)
        return folder if job.validation_file is not None else next(folder.glob(f"{ALONE}.*"))

    def link_rows(self, job_id: str, training: StoredFile, validation: StoredFile | None) -> None:
        """Give a job its own names of its files, so that they stay when the files are deleted.

        Raises:
            FileNotFoundError: a file was deleted just now.
        """
        folder = self.rows(job_id)
        folder.mkdir(parents=True, mode=0o700)
        named = [(ALONE if validation is None else TRAIN, training)]
        named += [] if validation is None else [(TEST, validation)]
        for name, file in named:
            target = folder / f"{name}{Path(file.place).suffix}"
            try:
                os.link(self.files / file.place, target)
            except FileNotFoundError:
                raise
            except OSError:  # a file system that has no second names
                shutil.copyfile(self.files / file.place, target)

    def unlink_rows(self, job_id: str) -> None:
        """Take a job's names away; the files themselves stay."""
        shutil.rmtree(self.rows(job_id), ignore_errors=True)

    def plain(self, text: str, job: Job) -> str:
        """A message without the places of this machine: rows are called as they were named in the request."""
        folder = self.rows(job.id)
        for name, file_id in ((ALONE, job.training_file), (TRAIN, job.training_file), (TEST, job.validation_file or "")):
            for path in folder.glob(f"{name}.*"):
                text = text.replace(str(path), file_id)
        text = text.replace(str(folder), f"{job.training_file}, {job.validation_file}")
        return whole_characters(text.replace(f"{self.directory}/", "").replace(str(self.directory), ""))
