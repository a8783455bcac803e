"""Sweeps on a real Slurm, started for the test: submitted, pre-empted, requeued, and the same in the end."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from experiments import run, slurm
from experiments.sweep import Run, Sweep
from jaxcifar.machine.errors import UserError
from tests import cluster
from tests.conftest import CACHE
from tests.processes import ROOT, SMALL, assert_same, checkpoints, reference

SWEEP = """
from experiments.run import Run, Sweep

def get_sweep(argument):
    fields = {fields}
    further = fields | {{'resume_from': '{folder}/first', 'epochs': 7}}
    return Sweep('Small', [
        Run('first', 'population', 'configs/base.py', fields),
        Run('second', 'from it', 'configs/base.py', further, after=('first',)),
    ], slurm={{'cpus': 1, 'memory': '4G', 'time': '10'}})
"""


@pytest.fixture
def submit(small_npz, tmp_path, monkeypatch):
    """Call `experiments.run SWEEP --slurm` with further flags; and where its runs are."""
    folder = tmp_path / 'runs'
    fields = SMALL | {'dataset': f'npz:{small_npz}'}
    (tmp_path / 'sweep.py').write_text(SWEEP.format(fields=fields, folder=folder))

    def call(*flags: str) -> Path:
        argv = ['run', f'{tmp_path}/sweep.py', '--workdir', str(folder), '--slurm', *flags]
        monkeypatch.setattr('sys.argv', argv)
        run.main()
        return folder

    return call


def test_a_preempted_job_is_requeued_and_all_ends_as_if_it_had_not_been(
    submit, small_npz, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(CACHE))
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '.3')
    monkeypatch.setenv('JAXCIFAR_RESULTS', str(tmp_path))
    undisturbed = reference(small_npz)
    with cluster.running(tmp_path / 'cluster') as environment:
        for name in ('PATH', 'SLURM_CONF'):
            monkeypatch.setenv(name, environment[name])
        with pytest.raises(UserError, match=r'job0.sbatch: .*invalid partition'):
            submit('--partition=nowhere')
        submit('--test-only')
        assert not cluster.ask(environment, 'squeue', '-h') and 'would take them' in capsys.readouterr().out
        folder = submit()
        first = folder / 'first'
        cluster.until(lambda: checkpoints(first), 300)
        os.kill(int((first / '.lock').read_text()), signal.SIGSTOP)  # Slurm lets it go on, to be stopped
        assert checkpoints(first)[-1] < 24
        urgent = ['sbatch', '--partition=urgent', '--cpus-per-task=8', '--output=/dev/null', '--wrap=true']
        assert 'Submitted' in cluster.ask(environment, *urgent)
        cluster.until(lambda: (folder / 'table.md').exists(), 600)
        # The job that writes the results is the last.
        cluster.until(lambda: not cluster.ask(environment, 'squeue', '-h'), 300)
    assert_same(first, undisturbed)
    log = (folder / 'first.log').read_text()
    assert 'saved at step' in log and 'resumed at step' in log
    assert len(json.loads((first / 'run.json').read_text())['sessions']) == 2
    assert '[task-0-first] resumed at step' in ''.join(p.read_text() for p in folder.glob('slurm/*.out'))
    before, after = ((d / 'metrics.csv').read_text().splitlines() for d in (first, folder / 'second'))
    *before, _ = before  # the chosen weights, at the end
    assert after[: len(before)] == before and after[-1].startswith('7,28,')
    assert '| from it | resnet8 | 1 | ' in (folder / 'table.md').read_text()
    assert (folder / 'results.csv').read_text().count('\nsecond,') == 2
    assert (folder / 'report' / 'report.html').exists()
    assert (tmp_path / 'accuracy.csv').read_text().count('npz:') >= 4
    said = capsys.readouterr().out
    assert 'scancel' in said and 'squeue -j' in said and f'report/ in {folder}' in said


def test_jobs_are_arrays_or_packed_and_wait_for_what_they_need(tmp_path, monkeypatch):
    experts = [Run(f'expert{i}', 'expert', 'configs/single.py', {'seed': i}) for i in range(4)]
    pairs = [Run(f'pair{i}', 'pair', 'a b.py', {}, (f'expert{i}', f'expert{i + 1}')) for i in (0, 2)]
    sweep = Sweep('Title', experts + pairs)
    ask = slurm.Resources(gpus=1, memory='12G', at_once=2, partition='volta')
    arrays = slurm.jobs(sweep, tmp_path, 1)
    assert [[run.name for run in job.runs] for job in arrays] == [
        ['expert0', 'expert1', 'expert2', 'expert3'], ['pair0'], ['pair2']
    ]  # fmt: skip
    text = slurm.script(arrays[0], tmp_path, ask)
    assert {'#SBATCH --array=0-3%2', '#SBATCH --gres=gpu:1', '#SBATCH --mem=12G', '#SBATCH --partition=volta',
            '#SBATCH --signal=TERM@120', '#SBATCH --requeue', '#SBATCH --open-mode=append'} <= set(
        text.splitlines()
    )  # fmt: skip
    assert 'account' not in text and "'a b.py'" in slurm.script(arrays[1], tmp_path, ask)
    assert '--dependency=afterok:${job0}_2:${job0}_3 job2.sbatch' in slurm.submission(arrays, tmp_path, False)
    packed = slurm.jobs(sweep, tmp_path, 4)
    assert [[run.name for run in job.runs] for job in packed[1:]] == [['pair0', 'pair2']]
    text = slurm.script(packed[0], tmp_path, ask._replace(pack=4))
    assert {'#SBATCH --gres=gpu:4', '#SBATCH --mem=48G', '#SBATCH --ntasks-per-node=4'} <= set(
        text.splitlines()
    )
    assert 'srun --exact --nodes=1 --ntasks=1 --cpus-per-task=4 --mem=12G --gres=gpu:1' in text
    assert '--dependency=afterok:${job0} job1.sbatch' in slurm.submission(packed, tmp_path, True)
    with pytest.raises(UserError, match='memory=lots is not like 16G'):
        slurm.script(packed[0], tmp_path, ask._replace(memory='lots'))


@pytest.mark.parametrize(('pack', 'ends', 'status'), [
    (1, '75', 75), (1, '0', 0), (1, '1', 1), (2, '75 0', 75), (2, '75 1', 75), (2, '1 75', 75), (2, '0 1', 1),
    (2, '0 0', 0),
])  # fmt: skip
def test_a_job_queues_again_where_a_run_is_to_be_resumed(pack, ends, status, tmp_path):
    runs = [Run(f'run{i}', 'row', 'c.py', {}) for i in range(2)]
    (tmp_path / 'srun').write_text(f"""#!/bin/bash
        echo "$@"
        ends=({ends}); name=${{@: -1}}; exit ${{ends[${{name: -1}}]}}
    """)
    (tmp_path / 'scontrol').write_text(f'#!/bin/bash\necho "$@" >> {tmp_path}/asked')
    for name in 'srun', 'scontrol':
        (tmp_path / name).chmod(0o755)
    (job, *_) = slurm.jobs(Sweep('Title', runs), tmp_path, pack)
    text = slurm.script(job, tmp_path, slurm.Resources(pack=pack))
    environment = {
        'PATH': f'{tmp_path}:{os.environ["PATH"]}',
        'SLURM_JOB_ID': '7',
        'SLURM_ARRAY_TASK_ID': '0',
    }
    done = subprocess.run(['bash', '-c', text], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, '')
    assert (tmp_path / 'asked').exists() == (status == 75)
    assert status != 75 or (tmp_path / 'asked').read_text() == 'requeue 7\n'
    lines = sorted(line.partition(' ')[0] for line in done.stdout.splitlines())
    assert lines == ['[task-0-run0]', '[task-1-run1]'][:pack]
    assert '--config c.py' in (tmp_path / 'run0.log').read_text()


def test_the_sweep_of_the_readme_becomes_jobs(tmp_path, monkeypatch):
    code = next(block for block in (ROOT / 'README.md').read_text().split('```') if 'get_sweep' in block)
    (tmp_path / 'mine.py').write_text(code.removeprefix('python'))
    argv = [
        'run',
        f'{tmp_path}/mine.py',
        '--workdir',
        str(tmp_path / 'runs'),
        '--slurm',
        '--dry-run',
        '--pack=2',
    ]
    monkeypatch.setattr('sys.argv', argv)
    run.main()
    first, second = ((tmp_path / 'runs/slurm' / f'job{i}.sbatch').read_text() for i in range(2))
    assert first.count('train ') == 2 and '#SBATCH --time=8:00:00' in first and 'train 0 longer' in second
    assert '--dependency=afterok:${job0} job1' in (tmp_path / 'runs/slurm/submit.sh').read_text()
    (tmp_path / 'mine.py').write_text(code.removeprefix('python').replace("{'time'", "{'hours'"))
    with pytest.raises(UserError, match=r'unknown field of Sweep.slurm .hours.'):
        run.main()


def test_without_slurm_only_the_scripts_are_written(submit, monkeypatch, capsys):
    folder = submit('--dry-run', '--gpus=0')
    assert 'gres' not in (folder / 'slurm' / 'job0.sbatch').read_text()
    assert 'submit.sh' in capsys.readouterr().out
    monkeypatch.setenv('PATH', str(folder))
    with pytest.raises(UserError, match='there is no sbatch here'):
        submit()
