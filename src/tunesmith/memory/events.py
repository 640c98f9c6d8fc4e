"""All allocations of a step in order, for the replay of the allocator: the walk of ``memory/estimate.py`` on one long tape.

Layers are walked one by one and not a kind once, since where a block lies depends on all before it. That takes a
tenth of a second, so a plan is made by that and checked by this.
"""

from tunesmith.memory.dials import DENSE, Dials
from tunesmith.memory.estimate import chunk_of_logits, estimate, groups, inputs_of_step
from tunesmith.memory.gpu_layer import INPUTS, WORK, GpuLayer
from tunesmith.memory.shape import Shape
from tunesmith.memory.tape import Tape

SPREAD = ("linear layers", "adapter", "optimizer", "step casts of A and B")  # terms that are tensors of every layer


def step_events(shape: Shape, dials: Dials) -> list[tuple[str, int]]:
    """What comes and goes in a step of one micro-batch on a GPU, what lies there throughout included.

    Returns:
        (name, bytes) when it comes, (name, -1) when it goes.
    """
    tape = Tape()
    for term, nbytes in estimate(shape, dials).resident.items():
        if term not in SPREAD:
            tape.hold(term, nbytes, term)
            continue
        total = sum(inputs * sum(outs) for layer in shape.layers for inputs, outs in groups(layer, shape.hidden))
        for number, layer in enumerate(shape.layers):
            for inputs, outs in groups(layer, shape.hidden):
                for part, width in enumerate(outs):
                    name = f"{term} {number} {inputs} {len(outs)} {part}"
                    tape.hold(name, nbytes * inputs * width / total, term)
    tape.hold("inputs of the step", inputs_of_step(shape, dials), INPUTS)
    tape.hold("embedded", dials.tokens * shape.hidden * dials.width, INPUTS)
    walked = []
    for number, layer in enumerate(shape.layers):
        narrow = shape.narrow and number == shape.depth - 1
        policy = "none" if narrow else dials.recomputed(number)
        one = GpuLayer(layer, shape.hidden, dials, narrow, number == 0)
        tape.prefix = f"layer {number} "
        one.forward(tape)
        if policy == "layer":
            one.drop_all(tape)
        else:
            one.drop(tape, policy == "attention", policy == "mlp")
        walked.append((one, policy))
    tape.prefix = ""
    rows = dials.rows * shape.hidden * dials.width
    tape.hold("last hidden states", rows, WORK)
    tape.hold("gradient at the head", rows, WORK)
    for part, nbytes in enumerate(chunk_of_logits(shape, dials)):
        tape.hold(f"logits {part}", nbytes, WORK)
    tape.free("logits 0", "logits 1", "last hidden states")
    tape.hold("g", rows, WORK)
    tape.free("gradient at the head")
    for number, (one, policy) in reversed(list(enumerate(walked))):
        tape.prefix = f"layer {number} "
        tape.free("out")
        one.backward(tape, policy)
        tape.prefix = ""
        tape.free("g")
        tape.hold("g", dials.tokens * shape.hidden * DENSE[dials.compute], WORK)
    return tape.events
