"""Runs become models: what may be served, under which name, and how one is exchanged while it answers."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest
from serving_runs import name_files, servable, write_lora

from tunesmith.checkpoints.gguf_reader import GgufReader
from tunesmith.errors import ExportError, RunError
from tunesmith.serve.asking import Ask, End, Sampling
from tunesmith.serve.catalogue import Catalogue, Choices, named
from tunesmith.serve.generations import Generations
from tunesmith.serve.watch import Watch

SHORT = Choices(context=512)
NEVER_ENDS = Sampling(logit_bias={0: -1000.0, 2: -1000.0})


@pytest.fixture(scope="module")
def runner():
    with asyncio.Runner() as running:
        yield running


@pytest.fixture
def make(tiny_run, tiny_gguf, tmp_path):
    """``make("a", seed=1, decision="deploy")`` -> a run that can be served."""
    return lambda name, base=tiny_gguf, **options: servable(tiny_run, tmp_path / name, base, **options)


@contextlib.asynccontextmanager
async def opened(runs, choices=SHORT, slots=2):
    catalogue = Catalogue(choices)
    models = await Generations.open([catalogue.find(run.path) for run in runs], catalogue.find, slots)
    try:
        yield models
    finally:
        await models.close()


async def say(models, name, **ask):
    async with models.borrow(name) as borrowed:
        return await _gathered(borrowed, **ask)


async def _gathered(borrowed, max_tokens=6, **ask):
    prompt = tuple(borrowed.served.renderer.prompt_ids([{"role": "user", "content": "a red car"}]))
    pieces = [piece async for piece in borrowed.answer(Ask(prompt=prompt, max_tokens=max_tokens, **ask))]
    assert isinstance(pieces[-1], End)
    return "".join(piece.text for piece in pieces[:-1])


def test_runs_on_one_base_share_its_process_and_a_merged_one_has_its_own(make, tiny_gguf, tmp_path, runner):
    """The bases of two runs differ in the template that they carry, and in nothing that an answer follows from."""
    other = tmp_path / "other.gguf"
    template = GgufReader(tiny_gguf).fields["tokenizer.chat_template"].contents().encode()
    content = tiny_gguf.read_bytes()
    assert content.count(template) == 1
    other.write_bytes(content.replace(template, template.replace(b"system", b"System")))
    a, b, merged = make("a", seed=1), make("b", base=other, seed=2), make("merged", lora=None, short_prompt="Be brief.")

    async def look():
        async with opened([merged, a, b]) as models:
            base, *rest = models.served()
            assert (base.name, base.parent, base.run, base.system, base.verdict) == ("tiny", None, None, None, None)
            found = {served.name: served for served in rest}
            assert [found[name].parent for name in ("a", "b", "merged")] == ["tiny", "tiny", None]
            assert found["a"].run == a.path.resolve() and found["a"].verdict == "deploy" and not found["a"].warnings
            assert found["merged"].system == "Be brief." and found["merged"].max_new_tokens == 12
            assert len({served.version for served in models.served()}) == 3 and base.context == found["a"].context == 512
            answers = {name: await say(models, name) for name in ("tiny", "a", "b", "merged", "a")}
            assert answers["merged"] == answers["tiny"] and len(set(answers.values())) == 3
            with pytest.raises(KeyError):
                await say(models, "c")
            return len(_children())

    before = len(_children())
    assert runner.run(look()) - before == 2 and len(_children()) == before


def _children():
    return [pid for children in Path("/proc/self/task").glob("*/children") for pid in children.read_text().split()]


def test_an_answer_ends_with_the_adapter_that_it_began_with(make, tiny_gguf, runner):
    """The new version answers the next request; the old process ends with its last answer, and not before."""
    a, b = make("a", seed=1), make("b", seed=2)

    async def exchange():
        async with opened([a, b]) as models:
            old, long, other = await say(models, "a"), await _long(models, "a"), await say(models, "b")
            (version,) = [served.version for served in models.served() if served.name == "a"]
            async with models.borrow("a") as borrowed:
                answer = borrowed.answer(_endless(borrowed))
                pieces = [await anext(answer)]
                lora = a.export / "a-lora.gguf"
                lora.unlink()
                write_lora(tiny_gguf, lora, 9)
                name_files(a)
                served = await models.add(a.path)
                assert served.version != version and served in models.served()
                new = await say(models, "a")
                assert new != old and await say(models, "b") == other
                processes = _children()
                pieces += [piece async for piece in answer]
                assert "".join(piece.text for piece in pieces[:-1]) == long
            while len(_children()) == len(processes):
                await asyncio.sleep(0.02)
            assert await say(models, "a") == new
            await models.remove("b")
            assert [served.name for served in models.served()] == ["tiny", "a"]
            with pytest.raises(KeyError):
                await models.remove("tiny")
            with pytest.raises(KeyError):
                await say(models, "b")

    runner.run(exchange())


async def _long(models, name):
    async with models.borrow(name) as borrowed:
        pieces = [piece async for piece in borrowed.answer(_endless(borrowed))]
    return "".join(piece.text for piece in pieces[:-1])


def _endless(borrowed):
    prompt = tuple(borrowed.served.renderer.prompt_ids([{"role": "user", "content": "a red car"}]))
    return Ask(prompt=prompt, max_tokens=300, sampling=NEVER_ENDS)


def test_what_cannot_be_added_leaves_everything_as_it_was(make, runner, tmp_path):
    a, broken, bad = make("a", seed=1), make("broken", seed=2), make("bad", decision="not better")
    (broken.export / "broken-lora.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    name_files(broken)
    twin = make("twin", seed=3)
    twin.recipe_file.write_text(a.recipe_file.read_text())  # another run of the same name
    for file in ("a-lora.gguf", "a-base-F16.gguf", "a-F16.gguf"):
        (twin.export / file).write_bytes((a.export / file).read_bytes())
    name_files(twin)

    async def add():
        async with opened([a]) as models:
            before, answer = models.served(), await say(models, "a")
            for run, name, kind, reason in (
                (broken.path, None, ExportError, "cannot serve it"),
                (bad.path, None, RunError, "the verdict is: not better"),
                (bad.path, "x y", RunError, "cannot be a model's name"),
                (tmp_path, None, RunError, "no run here"),
                (twin.path, None, RunError, "is the name of"),
                (twin.path, "tiny", RunError, "is the name of the base"),
            ):
                with pytest.raises(kind, match=reason):
                    await models.add(run, name)
            assert models.served() == before and await say(models, "a") == answer
            (warning,) = (await models.add(bad.path, force=True)).warnings
            assert warning == "forced: the verdict is: not better"
            assert (await models.add(twin.path, "a")).run == twin.path.resolve()  # a name that is given may be taken over
            assert await say(models, "a") == answer

    runner.run(add())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"decision": "regression"}, "the verdict is: regression"),
        ({"lora": "not deployable", "merged": "not deployable"}, r"parity calls the form LoRA not deployable \(a reason\)"),
        ({"lora": None, "merged": "not deployable"}, "parity calls the form F16 not deployable"),
    ],
)
def test_what_may_not_be_deployed_is_served_by_force_alone(make, options, reason):
    run = make("a", **options)
    with pytest.raises(RunError, match=f"not to be deployed: {reason}") as refused:
        Catalogue(SHORT).find(run.path)
    assert "--force" in refused.value.hint
    served = Catalogue(Choices(context=64, force=True)).find(run.path).served
    assert served.warnings[0].startswith("forced: ") and served.name == "a"


def test_forms_files_and_names_of_a_run(make, tiny_gguf, tmp_path):
    merged = Catalogue(SHORT).find(make("shown", lora="unknown", merged="unknown").path)
    assert merged.adapter is None and merged.base is None and "merged GGUF, F16 is served" in merged.served.warnings[0]
    altered = make("altered")
    write_lora(tiny_gguf, altered.export / "altered-lora.gguf", 7)
    with pytest.raises(RunError, match=r"altered-lora\.gguf is not the file that the verdict speaks of"):
        Catalogue(SHORT).find(altered.path)
    cheaper = make("cheaper", decision="as good and cheaper")
    copy = tmp_path / "base.gguf"
    copy.write_bytes(tiny_gguf.read_bytes())
    entry = Catalogue(Choices(base=copy, base_name="my/base")).find(cheaper.path, "team/cheap:1")
    assert (entry.model, entry.served.name, entry.served.parent) == (copy, "team/cheap:1", "my/base")
    assert entry.served.context == 1024  # as the export reserves
    copy.write_bytes(tiny_gguf.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(RunError, match=r"base\.gguf is not the file"):
        Catalogue(Choices(base=copy)).find(cheaper.path)
    (cheaper.export / "cheaper-lora.gguf").unlink()
    with pytest.raises(RunError, match=r"cheaper-lora\.gguf is not there"):
        Catalogue(SHORT).find(cheaper.path)
    quiet = make("quiet")
    quiet.verdict_file.unlink()
    with pytest.raises(RunError, match="there is no verdict"):
        Catalogue(SHORT).find(quiet.path)
    assert named("x=y/z") == ("x", Path("y/z")) and named("runs/a") == (None, Path("runs/a"))


def test_a_watched_run_is_exchanged_when_its_new_verdict_stands_still(make, tiny_gguf, runner, tmp_path, talk):
    a = make("a", seed=1)
    (folder := tmp_path / "runs").mkdir()

    async def watch():
        async with opened([a]) as models:
            watching = Watch(models, {"a": a.path}, folder)
            await watching.look()
            before = models.served()
            lora = a.export / "a-lora.gguf"
            lora.unlink()
            write_lora(tiny_gguf, lora, 5)
            name_files(a)
            lora.write_bytes(lora.read_bytes()[:-4] + b"\0\0\0\1")  # not the one that the verdict names
            for _ in range(3):
                await watching.look()
            assert models.served() == before and talk().count("not the file that the verdict speaks of; a goes on") == 1
            name_files(a)
            await watching.look()
            assert models.served() == before  # it may go on changing
            await watching.look()
            after = models.served()
            assert [served.name for served in after] == ["tiny", "a"] and after[1].version != before[1].version
            shutil.copytree(make("b", seed=2).path, folder / "b")
            for _ in range(2):
                await watching.look()
            assert [served.name for served in models.served()] == ["tiny", "a", "b"]
            await models.remove("b")  # as a request may
            shutil.rmtree(folder / "b")
            shutil.rmtree(a.path)
            await watching.look()
            assert [served.name for served in models.served()] == ["tiny", "a"]

    runner.run(watch())
