"""`plan`: what it reads of programs and of the compiler's answers, and its search for a batch."""

import dataclasses
import importlib.util
import types

import jax
import jax.numpy as jnp
import pytest

from beit_jax.errors import RequestError
from beit_jax.performance import plan, tpu_estimate
from beit_jax.performance.programs import Program, peak, peak_in_turns, step_programs
from beit_jax.performance.tpu_estimate import estimate
from beit_jax.settings.mapping import task_config
from beit_jax.settings.recipes import load_recipe
from beit_jax.tasks import make_task
from beit_jax.tasks.pretrain import TokenizerConfig
from beit_jax.tools import plan as tool
from beit_jax.train import jaxprs
from beit_jax.train.sharding import make_mesh
from tests import tiny

HLO = """HloModule step

%fused (p: f32[5]) -> f32[5] {
  ROOT %gather = f32[8,5]{1,0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}

%body (p: (s32[], f32[5])) -> (s32[], f32[5]) {
  %dot.1 = f32[5]{0} fusion(%p), kind=kOutput, metadata={op_name="jit(step)/layer_3/dot"}, backend_config={"estimated_cycles":"100"}
}

%counted (p: (s32[], f32[5])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%random (p: (s32[], f32[5])) -> pred[] {
  ROOT %any = pred[] fusion(%p), kind=kLoop
}

ENTRY %main (p: f32[5]) -> f32[5] {
  %loop = (s32[], f32[5]) while(%t), condition=%random, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %loop.2 = (s32[], f32[5]) while(%t), condition=%random, body=%body
  %loop.3 = (s32[], f32[5]) while(%t), condition=%counted, body=%body
  %dot.7 = f32[5]{0} fusion(%p), kind=kOutput, calls=%fused, metadata={op_name="jit(step)/layer_1/dot"}, backend_config={"estimated_cycles":"7"}
  %reduce = (f32[10]{0}, f32[6,5]{1,0}) all-reduce(%a, %b), replica_groups={{0,1,2,3}}, to_apply=%add
  %sums = f32[7]{0} all-reduce(%a), replica_groups=mesh['axis_0'=2,'axis_1'=5] {'axis_1'}, to_apply=%add
  %part = f32[7]{0} all-reduce(%a), replica_groups=mesh['axis_0'=8] {'axis_0':(1)4}, to_apply=%add
  %scatter = bf16[3,5]{1,0} reduce-scatter(%a), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %sum = f32[5]{0} fusion(%dot.7), metadata={op_name="jit(step)/add"}, backend_config={"estimated_cycles":"3"}
}
"""  # noqa: E501


def recipe(**changed):
    config = task_config(load_recipe('configs/pretrain_imagenet1k.py'))
    return dataclasses.replace(config, **changed)


def test_estimate():
    found = estimate(HLO, trips=2)
    assert found.cost == (12 + 2 + 4) * 100 + 7 + 3
    assert dict(found.operations) == {'jit(step)/layer_#/dot': 1807, 'jit(step)/add': 3}
    reduced = 160 * 2 * 3 / 4 + round(28 * 2 * 4 / 5) + 28 * 2 * 3 / 4
    assert dict(found.received) == {
        'all-gather': 160 * 3 / 4,
        'all-reduce': reduced,
        'reduce-scatter': 30,
    }


@pytest.mark.parametrize(
    ('made', 'kind', 'size'),
    [
        ('(f32[10], f32[6,5])', 'all-reduce', 160),
        ('f32[7]', 'all-reduce', 28),
        ('(f32[5], f32[20])', 'all-gather', 80),
        ('((f32[5], f32[3]), (f32[20], f32[12]))', 'all-gather', 128),
        ('((f32[20]), f32[5])', 'reduce-scatter', 20),
        ('(f32[19,251], f32[19,251], u32[], u32[])', 'collective-permute', 19 * 251 * 4),
    ],
)
def test_bytes_of_what_is_asynchronous(made, kind, size):
    """Of two chips: `size` are the results alone."""
    start = f'  %start = {made} {kind}-start(%p), replica_groups={{{{0,1}}}}'
    text = f'ENTRY %main (p: f32[5]) -> f32[5] {{\n{start}'
    assert estimate(text, 1).received[kind] == size * {'all-gather': 1 / 2}.get(kind, 1)


def test_product_flops():
    """Of what XLA counts, which knows no loops, and of a convolution by hand."""

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    found = jaxprs.product_flops(layers, jnp.zeros((3, 5)), jnp.zeros((7, 5, 5)))
    assert found == 7 * 2 * 3 * 5 * 5

    def convolve(x, w):
        numbers = ('NHWC', 'HWIO', 'NHWC')
        return jax.lax.conv_general_dilated(x, w, (1, 1), 'VALID', dimension_numbers=numbers)

    images, kernel = jnp.zeros((2, 11, 13, 3)), jnp.zeros((5, 7, 3, 17))
    assert jaxprs.product_flops(convolve, images, kernel) == 2 * (2 * 7 * 7 * 17) * (5 * 7 * 3)
    product = jax.jit(jax.value_and_grad(lambda x: jnp.einsum('bij,bjk->bik', x, x).sum()))
    x = jnp.zeros((3, 19, 19))
    counted = product.lower(x).compile().cost_analysis()['flops']
    assert jaxprs.product_flops(product, x) == pytest.approx(counted, rel=0.1)


def test_flops_of_base():
    """54 GMAC an image and step of BEiT-B with the head on 75 slots (forward 1, backward 2),
    counted by hand."""
    config = recipe()
    programs = step_programs(config, make_mesh(config.mesh), dall_e=True)
    tokens, width = 197, 768
    blocks = 12 * (12 * tokens * width**2 + 2 * tokens**2 * width)
    products = 196 * 768 * width + blocks + 75 * width * 8192
    jitter = 3 * 224 * 224 * 3
    step, tokenizer = (programs[name].flops / config.batch_size for name in ('step', 'tokenizer'))
    assert step == pytest.approx(3 * 2 * (products + jitter), rel=1e-4)
    assert tokenizer == pytest.approx(2 * 26.06e9, rel=1e-3)  # forward only


def test_flops_of_kernels():
    """What a device computes by kernels of its own counts alike, also where there is none."""
    plain = recipe(batch_size=16, model=dataclasses.replace(recipe().model, depth=1))
    cudnn = dataclasses.replace(plain, model=dataclasses.replace(plain.model, attention='cudnn'))
    flops = [step_programs(each, make_mesh(each.mesh))['step'].flops for each in (plain, cudnn)]
    assert flops[0] == flops[1]


def test_memory_of_programs_in_turns():
    """What both are given, and the larger of what one makes and puts aside; a donated argument
    (alias) is what it makes."""

    def memory(argument, temp, output, alias):
        return types.SimpleNamespace(
            argument_size_in_bytes=argument,
            temp_size_in_bytes=temp,
            output_size_in_bytes=output,
            alias_size_in_bytes=alias,
        )

    step, tokenizer = memory(100, 30, 101, 100), memory(7, 40, 2, 0)
    assert peak(step) == 131 and peak(tokenizer) == 49
    assert peak_in_turns([step, tokenizer]) == 100 + 7 + 42
    assert peak_in_turns([step]) == 131 and peak_in_turns([]) == 0


def test_programs_without_a_tokenizer():
    config = recipe(batch_size=16)
    program = step_programs(config, make_mesh(config.mesh))['step']
    assert program.inputs[1]['tokens'].shape == (16, 196) and 'token_image' not in program.inputs[1]
    assert jax.eval_shape(program.function, *program.inputs)[1]['loss'].shape == ()


@pytest.mark.parametrize('path', ['', '/nowhere'])
def test_programs_of_pixels(path):
    """No tokens are given and no tokenizer runs, neither DALL-E's nor that at the path."""
    config = recipe(batch_size=16, target='pixels', tokenizer=TokenizerConfig(path=path))
    programs = step_programs(config, make_mesh(config.mesh), dall_e=True)
    assert programs.keys() == {'step'} and 'tokens' not in programs['step'].inputs[1]
    _, metrics = jax.eval_shape(programs['step'].function, *programs['step'].inputs)
    assert metrics['loss'].shape == ()


def test_no_plan_of_a_probe():
    config = task_config(load_recipe('configs/probe_imagenet1k.py'))
    with pytest.raises(RequestError, match='its step is one small product'):
        step_programs(config, make_mesh(config.mesh))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--topology=v9:2x2'],
            r'--topology=v9:2x2 is unknown: give KIND:SHAPE of a TPU or KIND:NUMBER of a GPU '
            '(a100, b200, h100, h200), for example v4:2x2x1, v5e:2x2',
        ),
        (
            ['--topology=v5e:2x2', '--json=/dev/null/plan.json'],
            r'--json=/dev/null/plan.json: /dev/null is no folder',
        ),
        (
            ['--topology=v5e:2x2', '--config.model.sise=large'],
            r'config.model.sise is not a setting. Did you mean model.size?',
        ),
    ],
)
def test_bad_requests(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr('sys.argv', ['plan', '--config=configs/pretrain_imagenet1k.py', *arguments])
    with pytest.raises(SystemExit, match='2'):
        tool.arguments.main(tool.run, tool._arguments())
    assert message in capsys.readouterr().err


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(RequestError, match=r'pip install "jax\[tpu\]"'):
        plan.target('v5e:2x2').devices(1)


@pytest.mark.parametrize(
    ('answer', 'message'),
    [
        (
            'Ran out of memory in memory space hbm. Used 22.01G of 15.75G hbm. Exceeded hbm '
            'capacity by 6.26G.\n\nTotal',
            'a chip has 16.91 GB of memory, this takes 23.63 GB, 6.72 GB too much: lower '
            'config.batch_size .2048.',
        ),
        (
            'Ran out of memory on HBM, the total memory required for HLO temporaries (15.91G) '
            'exceeds available HBM (15.75G).',
            'a chip has 16.91 GB of memory, this takes 17.08 GB, 0.17 GB too much: lower '
            'config.batch_size .2048.',
        ),
        ('said otherwise', 'said otherwise: lower config.batch_size .2048.'),
    ],
)
def test_what_does_not_fit(answer, message):
    class Stub:
        def trace(self, *inputs):
            return self

        def lower(self):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(f'RESOURCE_EXHAUSTED: {answer}')

    with pytest.raises(plan.MemoryLimitError, match=message):
        plan._compile(Program(Stub(), (), 0), recipe(), plan.target('v5e:2x2'))


@pytest.mark.parametrize(
    ('images', 'parts', 'tried', 'fastest'),
    [
        (12, 1, [12, 24, 48, 96, 72, 84], 48),
        (384, 1, [384, 192, 96, 48, 72, 84, 24], 48),
        (95, 1, [95, 47, 71, 83, 23], 47),
        (82, 1, [82, 164, 123, 102, 41, 20], 41),
        (100, 20, [100, 40, 60, 80, 20], 40),
        (25, 20, [20, 40, 80, 160, 120, 100], 40),
    ],
)
def test_search_batch(images, parts, tried, fastest, monkeypatch, capsys):
    """A chip that takes 90 images, and is fastest with 48, from recipes that fit and that do not;
    the parts of a batch are whole."""
    _chip(monkeypatch, 90)
    found = plan.search_batch(recipe(batch_size=4 * images, accumulate_steps=parts), 'v5e:2x2')
    assert found['largest_images_per_chip'] == max(number for number in tried if number <= 90)
    assert found['fastest_images_per_chip'] == fastest
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split(' images a chip:')[0]) for line in lines] == tried
    refused = {f'{number} images a chip: {4 * number} images' for number in tried if number > 90}
    assert refused <= set(lines)


@pytest.mark.parametrize(
    ('error', 'message', 'lines'),
    [
        (plan.MemoryLimitError, 'not even 1 images a chip fit: 4 images', 3),
        (RequestError, '^20 images', 0),
    ],
)
def test_search_batch_in_vain(error, message, lines, monkeypatch, capsys):
    """No batch fits, or the config has another fault, which no batch mends."""
    _chip(monkeypatch, 0, error)
    with pytest.raises(RequestError, match=message):
        plan.search_batch(recipe(batch_size=4 * 5), 'v5e:2x2')
    assert len(capsys.readouterr().out.splitlines()) == lines


def _chip(monkeypatch, most, error=plan.MemoryLimitError):
    """One of four, that takes `most` images and is fastest with 48."""

    def planned(config, topology, dall_e):
        images = config.batch_size // 4
        if images > most:
            raise error(f'{config.batch_size} images')
        return {'images_per_second': 1000 - abs(images - 48), 'memory': images * 1e8}

    monkeypatch.setattr(tpu_estimate.Tpu, 'devices', lambda target, slices: [0] * 4)
    monkeypatch.setattr(plan, 'plan', planned)


def test_flops_of_vqkd(tmp_path):
    """Counted by hand; with a teacher its program is beside the step."""
    tokens, width, hidden, codes, rows, features = 25, 64, 37, 7, 53, 16
    model = {
        'width': width, 'depth': 3, 'decoder_depth': 2, 'heads': 1, 'hidden': hidden,
        'vocabulary': rows, 'code_width': codes, 'patch_size': 4, 'features': features,
    }  # fmt: skip
    changed = {'task': 'vqkd', 'model': model, 'teacher': {'path': ''}}
    settings = tiny.settings('', **changed) | {'model': model}
    settings = {name: each for name, each in settings.items() if name not in ('tokenizer', 'mask')}
    config = task_config(settings)
    (step,) = step_programs(config, make_mesh(config.mesh)).values()
    block = (tokens + 1) * (4 * width**2 + 2 * width * hidden) + 2 * (tokens + 1) ** 2 * width
    halves = 5 * block + tokens * width * (4 * 4 * 3 + codes + 2 * width + codes + features)
    nearest = tokens * codes * rows
    assert step.flops / 8 == pytest.approx(3 * 2 * (halves + nearest), rel=1e-2)
    beit = task_config(tiny.settings('', target='pixels', model={'depth': 1}))
    tiny.save_checkpoint(tmp_path, make_task(beit))
    config = task_config(settings | {'teacher': {'path': str(tmp_path)}})
    programs = step_programs(config, make_mesh(config.mesh))
    assert list(programs) == ['step', 'teacher'] and programs['teacher'].flops > 0
