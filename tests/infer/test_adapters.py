import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tunesmith.chat.render import Renderer
from tunesmith.errors import ModelError
from tunesmith.infer.adapters import Adapters
from tunesmith.infer.in_process import InProcessEngine
from tunesmith.models.load import load_model

PROMPTS = [[{"role": "user", "content": text}] for text in ["a", "a red car and a longer one?", "b c", "zz top", "q", "7"]]
ROWS = ["wide", None, "narrow", "wide", None, "narrow"]


@pytest.fixture(scope="module")
def directories(tiny_dir, tmp_path_factory):
    """Two adapters by PEFT, of different rank, scale and targets, with B far from zero."""
    found = {}
    for name, config in {
        "wide": LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], use_rslora=True),
        "narrow": LoraConfig(r=2, lora_alpha=4, target_modules=["k_proj", "down_proj", "up_proj"]),
    }.items():
        torch.manual_seed(len(name))
        model = get_peft_model(load_model(tiny_dir, "fp32"), config)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        found[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(found[name])
    return found


def test_logits_equal_pefts_mixed_batch(tiny_dir, directories, tiny_model):
    peft = PeftModel.from_pretrained(load_model(tiny_dir, "fp32"), directories["wide"], adapter_name="wide")
    peft.load_adapter(directories["narrow"], adapter_name="narrow")
    ids_BT = torch.randint(5, 900, (6, 9), generator=torch.Generator().manual_seed(0))
    named = [name or "__base__" for name in ROWS]
    with torch.no_grad():
        expected = peft.eval()(input_ids=ids_BT, adapter_names=named).logits
        adapters = Adapters(tiny_model, directories)
        for row, name in enumerate(ROWS):
            adapters.use(name)
            torch.testing.assert_close(tiny_model(ids_BT[row : row + 1]).logits[0], expected[row], atol=2e-4, rtol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1  # else the test would hold anything


def test_rows_of_several_adapters_in_one_call(tiny_dir, directories, tiny_model, tokenizer):
    """Each row says what it says when its adapter is alone on a model; the base is the base again afterwards."""
    renderer, done = Renderer(tokenizer), []
    engine = InProcessEngine(tiny_model, renderer, 2, Adapters(tiny_model, directories))
    answers = engine.generate(PROMPTS, 8, done.append, adapters=ROWS)
    assert sum(done) == 6
    texts = {}
    for name in ("wide", "narrow", None):
        alone = load_model(tiny_dir, "fp32")
        if name is not None:
            alone = PeftModel.from_pretrained(alone, directories[name]).merge_and_unload()
        texts[name] = [answer.text for answer in InProcessEngine(alone, renderer, 3).generate(PROMPTS, 8, lambda _: None)]
    assert [answer.text for answer in answers] == [texts[name][row] for row, name in enumerate(ROWS)]
    assert [answer.text for answer in engine.generate(PROMPTS, 8, lambda _: None)] == texts[None]
    assert texts["wide"] != texts[None] != texts["narrow"]


def test_what_cannot_take_turns_is_refused(directories, tiny_dir, tiny_model, tmp_path):
    dora = get_peft_model(load_model(tiny_dir, "fp32"), LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    dora.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="DoRA cannot take turns"):
        Adapters(tiny_model, {"dora": tmp_path})
    adapters = Adapters(tiny_model, directories)
    with pytest.raises(ModelError, match="wider: no such adapter"):
        adapters.use("wider")
