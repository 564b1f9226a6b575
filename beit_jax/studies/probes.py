"""What a study's probes found: a table of the best heads, `probes.png` of every layer."""

from pathlib import Path
import re
import statistics

from matplotlib.figure import Figure

from beit_jax.whole_files import read_json

NEIGHBOURS = 'eval/neighbours'  # the accuracy of k-NN by the best layer and kind of features
# of the table: what -> pattern of the metrics of which the best layer counts
COLUMNS = {
    'linear head': r'eval/accuracy',
    'of CLS': r'eval/layer_\d+/cls',
    'of the mean': r'eval/layer_\d+/mean',
    'k-NN': NEIGHBOURS,
}
SHOWN = {
    'linear head on both': 'both',
    'linear head on CLS': 'cls',
    'k-NN by the mean of the patches': 'neighbours_mean',
}


def neighbours(folder: Path) -> dict:
    """The accuracies of k-NN that a probe left in its work directory, named as those of its heads
    are: eval/layer_NN/neighbours_cls and _mean, and the best."""
    table = read_json(folder / 'probe.json', 'remove the folder, and that run is done again')
    found = {
        f'eval/layer_{layer:02d}/neighbours_{kind}': accuracy
        for kind in ('cls', 'mean')
        for layer, accuracy in enumerate(table.get(f'k-NN {kind}', ()), 1)
    }
    return found | ({NEIGHBOURS: max(found.values())} if found else {})


def by_arm(study, done: list) -> dict[str, list[dict]]:
    """{arm: metrics of its probes, one a seed}. Arms whose encoder is the same share them, and the
    first of them is named."""
    found = {arm: [] for arm in study.arms}
    for run in done:
        if run.stage == 'probe':
            found[run.arm].append(run.result['metrics'])
    return {arm: each for arm, each in found.items() if each}


def best(each: list[dict], pattern: str) -> list[float]:
    """Of the metrics of each probe that a pattern matches the largest; of none of them nothing."""
    found = ([metrics[n] for n in metrics if re.fullmatch(pattern, n)] for metrics in each)
    return [max(values) for values in found if values]


def plot(found: dict[str, list[dict]], path: Path) -> None:
    """The mean over seeds of the accuracy at each layer, a line an arm."""
    figure = Figure(figsize=(5.5 * len(SHOWN), 4.2), layout='constrained')
    for axes, (title, kind) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items()):
        for arm, each in found.items():
            layers = sorted(name for name in each[0] if re.fullmatch(rf'.*/layer_\d+/{kind}', name))
            means = [100 * statistics.fmean(metrics[name] for metrics in each) for name in layers]
            axes.plot(range(1, len(layers) + 1), means, 'o-', label=arm)
        axes.set_title(title)
        axes.set_xlabel('layer')
        axes.set_ylabel('accuracy, %')
        axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize='small', loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)
