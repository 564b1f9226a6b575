"""The roofline of a program for a GPU, against counts by hand; and what is refused. Nothing is
compiled: that is `make test-gpu-compile`."""

import dataclasses
import importlib.util
import json
import math
import os

import jax
import pytest

from beit_jax.errors import RequestError
from beit_jax.machines.gpus import FACTORS, GPUS, target_config
from beit_jax.performance import plan
from beit_jax.performance.gpu_estimate import roofline
from beit_jax.performance.programs import Program
from beit_jax.tools import plan as tool
from tests import tiny
from tests.performance.test_plan import recipe

# as XLA writes it for an H100, cut to what is read
HLO = """HloModule step

%sliced (p.0: f32[17,5,7], p.1: s32[], p.2: f32[19,5,7]) -> f32[19,5,7] {
  %p.0 = f32[17,5,7]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %same = f32[17,7,5]{1,2,0} bitcast(%p.0)
  %slice = f32[1,7,5]{1,2,0} dynamic-slice(%same, %p.1, %zero, %zero), dynamic_slice_sizes={1,7,5}
  %update = f32[1,5,7]{2,1,0} bitcast(%slice)
  %p.2 = f32[19,5,7]{2,1,0} parameter(2)
  ROOT %into = f32[19,5,7]{2,1,0} dynamic-update-slice(%p.2, %update, %p.1, %zero, %zero)
}

%triton (q.0: bf16[3,11], q.1: bf16[11,13]) -> bf16[3,13] {
  %q.0 = bf16[3,11]{1,0} parameter(0)
  %q.1 = bf16[11,13]{1,0} parameter(1)
  ROOT %dot = bf16[3,13]{1,0} dot(%q.0, %q.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (t: (s32[], f32[17,5,7], f32[19,5,7])) -> (s32[], f32[17,5,7], f32[19,5,7]) {
  %t = (s32[], f32[17,5,7]{2,1,0}, f32[19,5,7]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %x = f32[17,5,7]{2,1,0} get-tuple-element(%t), index=1
  %y = f32[19,5,7]{2,1,0} get-tuple-element(%t), index=2
  %kept = f32[19,5,7]{2,1,0} fusion(%x, %i, %y), kind=kLoop, calls=%sliced, metadata={op_name="keep"}
  ROOT %next = (s32[], f32[17,5,7]{2,1,0}, f32[19,5,7]{2,1,0}) tuple(%i, %x, %kept)
}

%any (t.1: (s32[], f32[17,5,7], f32[19,5,7])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %i), direction=LT
}

%beside (r: bf16[7,13]) -> bf16[7,13] {
  %r = bf16[7,13]{1,0} parameter(0)
  ROOT %copy = bf16[7,13]{1,0} copy(%r), metadata={op_name="beside"}
}

ENTRY %main (a: bf16[7,11], b: bf16[11,13]) -> f32[7] {
  %a = bf16[7,11]{1,0} parameter(0)
  %b = bf16[11,13]{1,0} parameter(1)
  %f = f32[3,7,11]{2,1,0} constant({...})
  %g = f32[3,11,5]{2,1,0} constant({...})
  %product = (bf16[7,13]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={op_name="layer_3/product"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}
  %c = bf16[7,13]{1,0} get-tuple-element(%product), index=0
  %batched = (f32[3,7,5]{2,1,0}, s8[4194304]{0}) custom-call(%f, %g), custom_call_target="__cublas$gemm", metadata={op_name="batched"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]},"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}
  %exact = (f32[3,7,5]{2,1,0}, s8[4194304]{0}) custom-call(%f, %g), custom_call_target="__cublas$gemm", metadata={op_name="exact"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]},"precision_config":{"operand_precision":["HIGHEST","HIGHEST"]}}}
  %h = bf16[3,11]{1,0} slice(%a), slice={[0:3], [0:11]}, metadata={op_name="slice"}
  %fused = bf16[3,13]{1,0} fusion(%h, %b), kind=kCustom, calls=%triton, metadata={op_name="triton"}, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
  %loop = (s32[], f32[17,5,7]{2,1,0}, f32[19,5,7]{2,1,0}) while(%start), condition=%any, body=%body, backend_config={"known_trip_count":{"n":"17"}}
  %loop.2 = (s32[], f32[17,5,7]{2,1,0}, f32[19,5,7]{2,1,0}) while(%start), condition=%any, body=%body
  %picture = bf16[2,13,11,3]{3,2,1,0} parameter(2)
  %kernel = bf16[17,5,7,3]{3,2,1,0} parameter(3)
  %forward = (bf16[2,13,11,17]{3,2,1,0}, u8[0]{0}) custom-call(%picture, %kernel), window={size=5x7 pad=2_2x3_3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="forward"}
  %d = bf16[2,13,11,17]{3,2,1,0} get-tuple-element(%forward), index=0
  %filter = (bf16[17,5,7,3]{3,2,1,0}, u8[0]{0}) custom-call(%picture, %d), window={size=5x7 pad=2_2x3_3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="filter"}
  %input = (bf16[2,13,11,3]{3,2,1,0}, u8[0]{0}) custom-call(%d, %kernel), window={size=5x7 pad=2_2x3_3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={op_name="input"}
  %q = bf16[2,198,3,8]{3,2,1,0} parameter(4)
  %bias = bf16[1,3,198,198]{3,2,1,0} parameter(5)
  %attended = (bf16[2,3,198,8]{3,1,2,0}, f32[2,3,198]{2,1,0}, u8[0]{0}) custom-call(%q, %q, %q, %bias), custom_call_target="__cudnn$fmhaScaleBiasSoftmax", metadata={op_name="attend"}, backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "3", "198", "198"], "tuple_shapes": []}}}
  %backward = (bf16[2,3,198,8]{3,1,2,0}, bf16[2,3,198,8]{3,1,2,0}, bf16[2,3,198,8]{3,1,2,0}, bf16[1,3,198,198]{3,2,1,0}, u8[0]{0}) custom-call(%q, %q, %q, %bias), custom_call_target="__cudnn$fmhaScaleBiasSoftmaxBackward", metadata={op_name="attend back"}, backend_config={"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "3", "198", "198"], "tuple_shapes": []}}}
  %started = ((bf16[7,13]{1,0}), bf16[7,13]{1,0}, u32[]) async-start(%c), calls=%beside
  %done = bf16[7,13]{1,0} async-done(%started), calls=%beside
  %fusion-start = ((bf16[3,11]{1,0}, bf16[11,13]{1,0}), bf16[3,13]{1,0}, u32[]) fusion-start(%h, %b), kind=kCustom, calls=%triton, metadata={op_name="started"}
  %fusion-done = bf16[3,13]{1,0} fusion-done(%fusion-start)
  ROOT %sum = f32[7]{0} all-reduce(%s), replica_groups={{0,1,2,3}}, to_apply=%add, metadata={op_name="sum"}
}
"""  # noqa: E501
ENDLESS = dataclasses.replace(
    GPUS['h100'], bfloat16=math.inf, float32=math.inf, bandwidth=math.inf, product=1, copy=1
)


def costs(**rates) -> dict[str, float]:
    """Nanoseconds by name, without the shape of what is made."""
    found = roofline(HLO, dataclasses.replace(ENDLESS, **rates), trips=2)
    return {name.partition(' ->')[0]: cost for name, cost in found.operations.items() if cost}


def test_bytes():
    """At a byte a nanosecond; what an instruction is given twice is read once."""
    picture, kernel, result = 2 * 13 * 11 * 3, 17 * 5 * 7 * 3, 2 * 13 * 11 * 17
    q, bias = 2 * 198 * 3 * 8, 3 * 198 * 198
    triton = 2 * (3 * 11 + 11 * 13 + 3 * 13)
    found = costs(bandwidth=1e9, nvlink=math.inf)
    assert found == pytest.approx(
        {
            'layer_#/product': 2 * (7 * 11 + 11 * 13 + 7 * 13),
            'batched': 4 * (3 * 7 * 11 + 3 * 11 * 5 + 3 * 7 * 5),
            'exact': 4 * (3 * 7 * 11 + 3 * 11 * 5 + 3 * 7 * 5),
            'slice': 2 * 2 * 3 * 11,
            'triton': triton,
            'started': triton,
            # a slice of 5 x 7 numbers is read and written, and its number is read
            'keep': (17 + 2) * (4 * 2 * 5 * 7 + 4),
            'forward': 2 * (picture + kernel + result),
            'filter': 2 * (picture + kernel + result),
            'input': 2 * (picture + kernel + result),
            'attend': 2 * (q + bias + q) + 4 * 2 * 3 * 198,
            'attend back': 2 * (q + bias + 3 * q + bias),
            'beside': 2 * 2 * 7 * 13,
        }
    )


def test_flops():
    """At a product of bfloat16 a nanosecond; half as many in TF32, a tenth in float32."""
    convolution = 2 * (2 * 13 * 11 * 17) * (5 * 7 * 3)
    logits = 2 * (2 * 3 * 198 * 198 * 8)
    found = costs(bfloat16=1e9, float32=1e8, nvlink=math.inf)
    assert found == pytest.approx(
        {
            'layer_#/product': 2 * 7 * 11 * 13,
            'batched': 2 * (2 * 3 * 7 * 11 * 5),
            'exact': 10 * (2 * 3 * 7 * 11 * 5),
            'triton': 2 * 3 * 11 * 13,
            'started': 2 * 3 * 11 * 13,
            'forward': convolution,
            'filter': convolution,
            'input': convolution,
            'attend': 2 * logits,
            'attend back': 5 * logits,
        }
    )
    products = 2 * 7 * 11 * 13 + 2 * (2 * 3 * 7 * 11 * 5) + 2 * (2 * 3 * 11 * 13)
    assert roofline(HLO, ENDLESS, 1).flops == products + 3 * convolution + 7 * logits


def test_collectives():
    """Of four GPUs, at a byte a nanosecond: 3/4 of the array twice."""
    assert costs(nvlink=1e9) == {'sum': 4 * 7 * 2 * 3 / 4}
    assert roofline(HLO, ENDLESS, 1).received == {'all-reduce': 42}


def test_the_longer_counts(monkeypatch):
    """Bytes or products, times the factor of the kind."""
    rates = {'bfloat16': 1e9, 'bandwidth': 1e10, 'product': 0.5, 'copy': 0.1}
    found = costs(**rates)
    assert found['layer_#/product'] == pytest.approx(2 * 2 * 7 * 11 * 13)
    assert found['beside'] == pytest.approx(2 * 2 * 7 * 13)
    monkeypatch.setitem(FACTORS, 'product', 3.0)
    assert costs(**rates)['layer_#/product'] == pytest.approx(3 * found['layer_#/product'])


def test_counts():
    found = roofline(HLO, ENDLESS, trips=2)
    assert found.counts == {
        'product': 3,
        'batched product': 2,
        'convolution': 3,
        'attention': 2,
        'other': 1 + 17 + 2 + 1,
        'collective': 1,
    }
    # the gradient of all logits in tiles of 128, and one number a query
    assert found.workspace == 2 * 3 * (2 * 256 * 256 + 4 * 198)


def test_every_gpu_has_a_target():
    """XLA reads the text where its plugin is (`make test-gpu-compile`)."""
    for gpu in GPUS.values():
        text = target_config(gpu)
        assert text.count('{') == text.count('}') and f'device_memory_size: {gpu.memory}\n' in text
        assert f'memory_bandwidth: {gpu.bandwidth:.0f}\n' in text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--topology=h300:8'], '--topology=h300:8 is unknown'),
        (['--topology=h300:8'], 'KIND:NUMBER of a GPU (a100, b200, h100, h200)'),
        (['--topology=h100'], '--topology=h100: give h100:N'),
        (['--topology=h100:0'], 'the number of GPUs of one host, 1 to 8, for example h100:8'),
        (['--topology=h100:2x4'], '--topology=h100:2x4: give h100:N'),
        (['--topology=h100:16'], '--topology=h100:16: give h100:N'),
        (['--topology=h100:8', '--config.mesh.slice=2'], 'config.mesh.slice=2'),
        (
            ['--topology=h100:8', '--config.mesh.fsdp=3'],
            '-1 x 3 x 1 does not make the 8 devices there are: change config.mesh',
        ),
        (['--topology=h100:8', '--config.batch_size=2044'], 'config.batch_size'),
    ],
)
def test_bad_requests(arguments, message, monkeypatch, capsys):
    """Where the compiler is installed, of which nothing is asked."""
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    topology = type('Topology', (), {'devices': jax.devices()})
    monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', lambda **_: topology)
    refused(arguments, message, monkeypatch, capsys)


def test_bad_share_of_the_memory(monkeypatch, capsys):
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', '92%')
    refused(['--topology=h100:8'], 'XLA_CLIENT_MEM_FRACTION=92%: give', monkeypatch, capsys)


def test_without_the_compiler(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    refused(['--topology=h100:8'], 'pip install "jax[cuda13]"', monkeypatch, capsys)


def refused(arguments, message, monkeypatch, capsys):
    """Status 2 and a line."""
    monkeypatch.setattr('sys.argv', ['plan', '--config=configs/pretrain_imagenet1k.py', *arguments])
    with pytest.raises(SystemExit, match='2'):
        tool.arguments.main(tool.run, tool._arguments())
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


@pytest.mark.parametrize(('fraction', 'limit'), [('', '63.71'), ('0.92', '78.15')])
def test_what_does_not_fit(fraction, limit, monkeypatch):
    """Of a GPU's memory JAX takes what it is told to."""
    monkeypatch.setenv('XLA_CLIENT_MEM_FRACTION', fraction)
    monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)

    class Stub:
        """A program of a hundred gigabytes."""

        argument_size_in_bytes, temp_size_in_bytes = 60 * 10**9, 40 * 10**9
        output_size_in_bytes = alias_size_in_bytes = 10**9

        def __getattr__(self, name):
            return lambda *_: self

        def as_text(self):
            return 'ENTRY %main () -> f32[] {\n}'

    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    topology = type('Topology', (), {'devices': jax.devices()[:1]})
    monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', lambda **_: topology)
    program = Program(Stub(), (), 1)
    monkeypatch.setattr('beit_jax.performance.programs.step_programs', lambda *_: {'step': program})
    over = 100 - float(limit)
    with pytest.raises(
        RequestError,
        match=f'^a GPU has {limit} GB of memory, this takes 100.00 GB, {over:.2f} GB too much: '
        r'lower config.batch_size \(2048\), set config.model.remat=true, or raise '
        'config.accumulate_steps or config.mesh.fsdp; XLA_CLIENT_MEM_FRACTION=0.92 gives JAX more ',
    ):
        plan.plan(recipe(batch_size=2048), 'h100:1')


def test_whole_plan(tmp_path, monkeypatch, capsys):
    """Of a tiny run on two devices, compiled for this CPU in place of a GPU: what is said of it."""
    topology = type('Topology', (), {'devices': jax.devices()[:2]})
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr('jax.experimental.topologies.get_topology_desc', lambda **_: topology)
    monkeypatch.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'])
    config, found = tmp_path / 'config.json', tmp_path / 'plan.json'
    config.write_text(json.dumps(tiny.settings('', target='pixels', deterministic=True)))
    monkeypatch.setattr('beit_jax.runtime.gpu_plugins', lambda: ['xla_cuda13'])
    words = [f'--config={config}', '--topology=h100:2', f'--json={found}']
    monkeypatch.setattr('sys.argv', ['plan', *words])
    tool.arguments.main(tool.run, tool._arguments())
    said, result = capsys.readouterr().out, json.loads(found.read_text())
    step = result['programs']['step']
    assert 'pretrain, batch 8 on h100:2: 2 GPUs, 4 images each' in said
    assert 'A roofline, per GPU' in said and 'of 63.71 GB' in said
    assert f'step: {step["nanoseconds"]:,} nanoseconds' in said
    assert f'{step["counts"]["other"]:,} x other' in said and 'received by all-reduce' in said
    assert sum(step['kinds'].values()) == pytest.approx(step['nanoseconds'], rel=1e-3)
    assert result['step_seconds'] == result['nanoseconds'] / 1e9
    # as a run of this config has it, and without a GPU
    assert '--xla_gpu_deterministic_ops=true' in os.environ['XLA_FLAGS']
    assert '--xla_gpu_enable_triton_gemm=false' in os.environ['XLA_FLAGS']
