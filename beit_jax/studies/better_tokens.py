"""The arms that ask whether better tokens teach better: those of a discrete VAE against those of
VQ-KD, whose teacher is the BEiT that the discrete VAE taught, all in the same time."""

from collections.abc import Mapping


def better_tokens(
    steps: Mapping[str, int],
    step_seconds: Mapping[str, float],
    start_seconds: float,
    share: str,
) -> dict[str, dict]:
    """The arms of a study that probes encoders. All but the two teachers take as long as the arm
    `dVAE`, with all that they come from.

    Args:
      steps: of the pre-training on the dVAE's tokens (`dvae`) and of that of the teacher
        (`teacher`), of VQ-KD (`vqkd`) and of the fine-tuning of the other teacher (`classify`).
      step_seconds: of one core, of pre-training on the dVAE's tokens (`dvae`), on those of VQ-KD
        (`on_vqkd`), on them with the CLS head (`with_cls`), of `vqkd` and of `classify`.
      start_seconds: what a run takes besides its steps.
      share: of the steps that the teacher has, in words.
    """
    beit = f'dVAE, {share} of the steps'
    by_labels = f'{beit}, then 10 % of the labels'
    before = {'dvae': steps['teacher'], 'vqkd': steps['vqkd']}
    cls_head = 'cls_head.layers=1,cls_head.early=3'

    def of_dvae(count):
        return {'tokenizer': '', 'pretrain': _of(count), 'probe': ''}

    def taught(teacher, kind, settings=''):
        runs = before | ({'classify': steps['classify']} if teacher == by_labels else {})
        left = steps['dvae'] * step_seconds['dvae']
        left -= sum(start_seconds + count * step_seconds[run] for run, count in runs.items())
        pretrain = _of(round(left / step_seconds[kind]), settings)
        return {'teacher': teacher, 'vqkd': _of(steps['vqkd']), 'pretrain': pretrain, 'probe': ''}

    return {
        'dVAE': of_dvae(steps['dvae']),
        beit: of_dvae(steps['teacher']),
        by_labels: of_dvae(steps['teacher']) | {'classify': _of(steps['classify'])},
        'VQ-KD': taught(beit, 'on_vqkd'),
        'VQ-KD, CLS head': taught(beit, 'with_cls', cls_head),
        'VQ-KD by 10 % of the labels': taught(by_labels, 'on_vqkd'),
        'VQ-KD by 10 % of the labels, CLS head': taught(by_labels, 'with_cls', cls_head),
        'random weights': {'probe': ''},
    }


def _of(steps: int, settings: str = '') -> str:
    schedule = f'total_steps={steps},optimizer.warmup_steps={steps // 16}'
    return ','.join(filter(None, (schedule, settings)))
