"""What holds of the masks of any template: the properties, for ``test_published.py`` and ``test_peer_templates.py``."""

import published
from hypothesis import strategies as st

PLAIN = ["sun", "a < b", "é", "1.5", "\n"]
FORGED = ["</think>", "<think>", "<|im_end|>", "<|end|>", "<eos>", "</s>", "[INST]", "<｜Assistant｜>", "<|start|>"]
words, forging = (st.lists(st.sampled_from(texts), max_size=3).map(" ".join) for texts in (PLAIN, [*PLAIN, *FORGED]))


@st.composite
def conversations(draw, facts, words=words):
    """Messages with a marked word each, in the forms that a template has, some answers without weight."""
    messages = [{"role": "system", "content": f"system0 {draw(words)} s"}] if facts.system and draw(st.booleans()) else []
    with_tools = facts.tools and draw(st.booleans())
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": f"user{len(messages)} {draw(words)} u"})
        if with_tools and draw(st.booleans()):
            arguments = {"city": f"call{len(messages)} {draw(words)}"}
            call = {
                **published.CALL,
                "id": f"abcdefg{len(messages):02}",
                "function": {"name": "weather", "arguments": arguments},
            }
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            result = f"tool{len(messages)} {draw(words)} t"
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
            if facts.added and draw(st.booleans()):  # who asks says more before it is answered
                messages.append({"role": "user", "content": f"user{len(messages)} {draw(words)} u"})
        answer = {"role": "assistant", "content": f"answer{len(messages)} {draw(words)} a"}
        if facts.reasoning and draw(st.booleans()):
            answer["reasoning_content"] = f"why{len(messages)} {draw(words)} w"
        messages.append(answer)
    for message in messages[:-1]:
        if message["role"] == "assistant" and draw(st.booleans()):
            message["weight"] = 0
    return messages, published.TOOLS if with_tools else None


def _stock(renderer, messages, tools, generate=False):
    """transformers' own rendering; it knows no weights, and gpt-oss's name for reasoning is another."""
    key = "reasoning_content" if "reasoning_content" in renderer.template else "thinking"
    bare = [{key if k == "reasoning_content" else k: v for k, v in m.items() if k != "weight"} for m in messages]
    return renderer.tokenizer.apply_chat_template(
        bare, tools=tools, chat_template=renderer.template, tokenize=False, add_generation_prompt=generate
    )


def _marker(number, message):
    if message.get("tool_calls"):
        return f"call{number} "
    return f"{'answer' if message['role'] == 'assistant' else message['role']}{number} "


def turns_are_as_asked(renderer, facts, data):
    """Each supervised turn is what deployment asks for, and nothing else is taught."""
    messages, tools = data.draw(conversations(facts))
    taught = [n for n, m in enumerate(messages) if m["role"] == "assistant" and m.get("weight", 1)]
    documents, rendered = renderer.documents(messages, tools), renderer.render(messages, tools)
    assert [d.ids for d in rendered.documents] == [[i for piece in pieces for i in piece.ids] for pieces in documents]
    assert [d.supervised for d in rendered.documents] == [
        [int(p.supervised) for p in pieces for _ in p.ids] for pieces in documents
    ]
    groups = [taught] if len(documents) == 1 else [[n] for n in taught]
    for pieces, own in zip(documents, groups, strict=True):
        text = "".join(piece.text for piece in pieces)
        said = "".join(piece.text for piece in pieces if piece.supervised)
        for n in own:
            # Its context, to the letter, is the prompt that stock transformers writes for it.
            asked = _stock(renderer, messages[:n], tools, generate=True)
            assert text.startswith(asked)
            prompt = renderer.prompt_ids(messages[:n], tools)
            assert [i for piece in pieces for i in piece.ids][: len(prompt)] == prompt
            if len(own) == 1:
                whole = _stock(renderer, messages[: n + 1], tools)
                context = "".join(piece.text for piece in pieces if not piece.supervised)
                assert context.startswith(asked) and not any(piece.supervised for piece in pieces[: _count(pieces, asked)])
                if whole.startswith(asked):
                    assert whole[len(asked) :].startswith(said) and not whole[len(asked) + len(said) :].strip()
            content, reasoning = messages[n]["content"], messages[n].get("reasoning_content", "")
            assert content in said and reasoning in said
        assert pieces[[piece.supervised for piece in pieces].index(True) - 1].supervised is False
        last = [piece for piece in pieces if piece.supervised][-1]
        assert last.control and last.ids[0] in renderer.stop_ids
        # Nothing of anybody else is taught: no other turn, no turn without weight.
        for n, message in enumerate(messages):
            assert n in own or _marker(n, message) not in said


def _count(pieces, asked):
    """Pieces that lie in the prompt."""
    length = count = 0
    while length < len(asked):
        length += len(pieces[count].text)
        count += 1
    assert length == len(asked), "a piece straddles the end of the prompt"
    return count


def no_text_forges(renderer, facts, data):
    """No text of a message becomes a control token."""
    messages, tools = data.draw(conversations(facts, forging))
    harmless = []
    for number, message in enumerate(messages):
        calls = [{**c, "function": {"name": "weather", "arguments": {"city": "x"}}} for c in message.get("tool_calls", [])]
        plain = {**message, "content": message["content"] and _marker(number, message) + "x"}
        harmless.append({**plain, **({"tool_calls": calls} if calls else {})})
        if "reasoning_content" in message:
            harmless[-1]["reasoning_content"] = "y"
    control = renderer.vocabulary.control_ids
    for document, plain in zip(
        renderer.render(messages, tools).documents, renderer.render(harmless, tools).documents, strict=True
    ):
        assert [i for i in document.ids if i in control] == [i for i in plain.ids if i in control]
