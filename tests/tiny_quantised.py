"""Tiny checkpoints in every quantised format that is read: the inverse of the reader, and the dense weight in fp64.

Every writer takes a weight and gives the tensors that a library would put into the file, by what follows the name of the layer,
and the dense weight as the format's text defines it. Values are rounded to the nearest code; how good that is does not matter.
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

GROUP = 16
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours stands at each place of a word
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def _words(codes, bits):
    """Codes along the last dimension as 32-bit words, the first in the lowest bits."""
    parts = codes.long().unflatten(-1, (-1, 32 // bits)) << (bits * torch.arange(32 // bits))
    words = parts.sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def _grid(weight_OI, group_I, bits, symmetric=False):
    """Codes from 0, zero points and fp16 scales: (O, I), (O, G), (O, G)."""
    groups, top = int(group_I.max()) + 1, 2**bits - 1
    low = torch.stack([weight_OI[:, group_I == g].amin(1) for g in range(groups)], 1).clamp(max=0)
    high = torch.stack([weight_OI[:, group_I == g].amax(1) for g in range(groups)], 1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales_OG = ((high - low) / top).clamp(min=1e-4).half()
    zeros_OG = torch.full_like(scales_OG, (top + 1) // 2) if symmetric else (-low / scales_OG.float()).round()
    zeros_OG = zeros_OG.clamp(0, top).int()
    codes_OI = (weight_OI / scales_OG.float()[:, group_I]).round() + zeros_OG[:, group_I]
    return codes_OI.clamp(0, top).int(), zeros_OG, scales_OG


def _dense(codes_OI, zeros_OG, scales_OG, group_I, dtype):
    return ((codes_OI - zeros_OG[:, group_I]).double() * scales_OG.double()[:, group_I]).to(dtype)


def gptq(weight_OI, bits=4, group=GROUP, version="gptq", order=False):
    inputs = weight_OI.shape[1]
    group_I = torch.arange(inputs) // (group or inputs)
    if order:
        group_I = group_I[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
    codes_OI, zeros_OG, scales_OG = _grid(weight_OI, group_I, bits)
    stored_OG = (zeros_OG - 1) & (2**bits - 1) if version == "gptq" else zeros_OG
    tensors = {
        ".qweight": _words(codes_OI, bits).T,
        ".qzeros": _words(stored_OG.T, bits),
        ".scales": scales_OG.T,
        ".g_idx": group_I.int(),
    }
    return tensors, _dense(codes_OI, zeros_OG, scales_OG, group_I, torch.float16)


def awq(weight_OI, bits=4, group=GROUP):
    group_I = torch.arange(weight_OI.shape[1]) // group
    codes_OI, zeros_OG, scales_OG = _grid(weight_OI, group_I, bits)

    def packed(codes):
        return _words(codes.unflatten(-1, (-1, 8))[..., AWQ_COLUMNS].flatten(-2), bits)

    tensors = {".qweight": packed(codes_OI.T), ".qzeros": packed(zeros_OG.T), ".scales": scales_OG.T}
    return tensors, _dense(codes_OI, zeros_OG, scales_OG, group_I, torch.float16)


def packed_integers(weight_OI, bits=4, group=GROUP, symmetric=True, order=False):
    inputs = weight_OI.shape[1]
    group_I = torch.arange(inputs) // (group or inputs)
    if order:
        group_I = group_I[torch.randperm(inputs, generator=torch.Generator().manual_seed(1))]
    codes_OI, zeros_OG, scales_OG = _grid(weight_OI, group_I, bits, symmetric)
    tensors = {
        ".weight_packed": _words(codes_OI, bits),
        ".weight_scale": scales_OG.bfloat16(),
        ".weight_shape": torch.tensor(weight_OI.shape),
    }
    if not symmetric:
        tensors[".weight_zero_point"] = _words(zeros_OG.T, bits).T
    if order:
        tensors[".weight_g_idx"] = group_I.int()
    return tensors, _dense(codes_OI, zeros_OG, scales_OG.bfloat16(), group_I, torch.bfloat16)


def _float8(weight_OI, block, scale_dtype):
    """Codes, scales a block and the dense weight in fp64."""
    outputs, inputs = weight_OI.shape
    row_O, column_I = torch.arange(outputs) // block[0], torch.arange(inputs) // block[1]
    scales = torch.zeros(int(row_O.max()) + 1, int(column_I.max()) + 1)
    for m in range(scales.shape[0]):
        for n in range(scales.shape[1]):
            scales[m, n] = weight_OI[row_O == m][:, column_I == n].abs().max().clamp(min=1e-4) / 448
    scales = torch.exp2(scales.log2().ceil()) if scale_dtype == torch.uint8 else scales.to(scale_dtype).float()
    spread_OI = scales[row_O][:, column_I]
    codes_OI = (weight_OI / spread_OI).clamp(-448, 448).to(torch.float8_e4m3fn)
    stored = (scales.log2() + 127).to(torch.uint8) if scale_dtype == torch.uint8 else scales.to(scale_dtype)
    return codes_OI, stored, (codes_OI.float() * spread_OI).bfloat16()


def fp8(weight_OI, block=(16, 16), scale_dtype=torch.float32):
    codes_OI, scales, dense_OI = _float8(weight_OI, block or weight_OI.shape, scale_dtype)
    scales = scales if block else scales.reshape(())
    return {".weight": codes_OI, ".weight_scale_inv": scales, ".activation_scale": torch.ones(())}, dense_OI


def scaled_float8(weight_OI, strategy="channel"):
    outputs, inputs = weight_OI.shape
    block = {"channel": (1, inputs), "tensor": (outputs, inputs), "block": (16, 16)}[strategy]
    codes_OI, scales, dense_OI = _float8(weight_OI, block, torch.bfloat16)
    scales = scales.reshape(1) if strategy == "tensor" else scales
    return {".weight": codes_OI, ".weight_scale": scales, ".input_scale": torch.ones(1)}, dense_OI


def scaled_integers(weight_OI):
    scales_O1 = (weight_OI.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes_OI = (weight_OI / scales_O1.float()).round().clamp(-128, 127).to(torch.int8)
    dense_OI = (codes_OI.double() * scales_O1.double()).bfloat16()
    return {".weight": codes_OI, ".weight_scale": scales_O1}, dense_OI


def mxfp4(weight_EIO):
    """Of a stack of experts; blocks run along the inputs."""
    weight_EOGB = weight_EIO.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents_EOG = (weight_EOGB.abs().amax(-1).clamp(min=1e-6) / 6).log2().ceil().clamp(-127, 127)
    unit_EOGB = weight_EOGB / torch.exp2(exponents_EOG)[..., None]
    codes_EOGB = (unit_EOGB.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (unit_EOGB < 0)
    signs = torch.where(codes_EOGB >= 8, -1.0, 1.0)
    dense_EOGB = signs.double() * E2M1.double()[codes_EOGB % 8] * torch.exp2(exponents_EOG.double())[..., None]
    pairs = codes_EOGB.unflatten(-1, (-1, 2))
    tensors = {
        "_blocks": (pairs[..., 0] + 16 * pairs[..., 1]).to(torch.uint8),
        "_scales": (exponents_EOG + 127).to(torch.uint8),
    }
    return tensors, dense_EOGB.flatten(-2).transpose(1, 2).bfloat16()


def _compressed(form, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }


def _int4(**weights):
    return _compressed("pack-quantized", **{"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, **weights})


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}
FLOAT8 = {"num_bits": 8, "type": "float"}
# name -> (writer, its arguments, quantization_config)
FORMATS = {
    "gptq": (gptq, {}, GPTQ),
    "gptq-8bit": (gptq, {"bits": 8}, {**GPTQ, "bits": 8}),
    "gptq-order": (gptq, {"order": True}, {**GPTQ, "desc_act": True}),
    "gptq-v2": (gptq, {"version": "gptq_v2"}, {**GPTQ, "checkpoint_format": "gptq_v2"}),
    "gptq-channel": (gptq, {"group": None}, {**GPTQ, "group_size": -1}),
    "awq": (awq, {}, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}),
    "int4": (packed_integers, {}, _int4()),
    "int4-zeros": (packed_integers, {"symmetric": False}, _int4(symmetric=False)),
    "int4-order": (packed_integers, {"order": True}, _int4(actorder="group")),
    "int8-channel": (packed_integers, {"bits": 8, "group": None}, _int4(num_bits=8, strategy="channel", group_size=None)),
    "int8": (scaled_integers, {}, _compressed("int-quantized", num_bits=8, type="int", strategy="channel")),
    "float8": (scaled_float8, {}, _compressed("float-quantized", **FLOAT8, strategy="channel")),
    "float8-tensor": (scaled_float8, {"strategy": "tensor"}, _compressed("float-quantized", **FLOAT8, strategy="tensor")),
    "float8-block": (
        scaled_float8,
        {"strategy": "block"},
        _compressed("float-quantized", **FLOAT8, strategy="block", block_structure=[16, 16]),
    ),
    "fp8": (fp8, {}, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "fp8-uneven": (fp8, {"block": (24, 20)}, {"quant_method": "fp8", "weight_block_size": [24, 20]}),
    "fp8-powers": (fp8, {"scale_dtype": torch.uint8}, {"quant_method": "fp8", "weight_block_size": [16, 16]}),
    "fp8-tensor": (fp8, {"block": None}, {"quant_method": "fp8", "weight_block_size": None}),
    "mxfp4": (mxfp4, {}, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
}


def quantise(dense, target, name):
    """Write the dense checkpoint in ``dense`` anew with its linear layers, or its experts, in a format; the dense weights."""
    write, arguments, settings = FORMATS[name]
    shutil.copytree(dense, target)
    tensors, written, weights = load_file(dense / "model.safetensors"), {}, {}
    for key, tensor in tensors.items():
        is_expert = key.endswith(("gate_up_proj", "down_proj"))
        if (is_expert and write is mxfp4) or (write is not mxfp4 and key.endswith("_proj.weight")):
            parts, weights[key] = write(tensor.float(), **arguments)
            stem = key.removesuffix(".weight")
            written |= {f"{stem}{ending}": part.contiguous() for ending, part in parts.items()}
        else:
            written[key] = weights[key] = tensor
    save_file(written, target / "model.safetensors", metadata={"format": "pt"})
    file = target / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": settings}))
    return weights
