"""Sweeps on a real Slurm, started for the test: submitted, pre-empted, requeued, and the same in the end."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from experiments import run, slurm
from experiments import submit as submission
from experiments import sweep as sweeps
from experiments.sweep import Run, Sweep
from jaxcifar.machine.errors import UserError
from tests import cluster, pages
from tests.conftest import CACHED
from tests.processes import SMALL, assert_same, checkpoints, finish

SWEEP = """
from experiments.run import Run, Sweep

def get_sweep(argument):
    fields = {fields}
    further = fields | {{'resume_from': '{folder}/first', 'epochs': 7}}
    return Sweep('Small', [
        Run('first', 'population', 'tests/small.py', fields),
        Run('second', 'from it', 'tests/small.py', further, after=('first',)),
    ], slurm={{'cpus': 1, 'memory': '4G', 'time': '10'}})
"""


@pytest.fixture
def submit(small_npz, tmp_path, monkeypatch):
    """Call `experiments.run SWEEP --slurm` with further flags; and where its runs are."""
    folder = tmp_path / 'runs'
    # A smaller network would have ended before anybody could stop it.
    fields = SMALL | {'dataset': f'npz:{small_npz}', 'network': 'resnet8'}
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
    for name, value in CACHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv('JAXCIFAR_RESULTS', str(tmp_path))
    with cluster.running(tmp_path / 'cluster') as environment:
        undisturbed = finish(tmp_path / 'undisturbed', small_npz, network='resnet8', data__loader='host')
        for name in ('PATH', 'SLURM_CONF'):
            monkeypatch.setenv(name, environment[name])
        with pytest.raises(UserError, match=r'refused job0.sbatch: invalid partition.*`sinfo -s` lists'):
            submit('--partition=nowhere')
        submit('--test-only')
        assert not cluster.ask(environment, 'squeue', '-h') and 'would accept them' in capsys.readouterr().out
        folder = submit()
        first = folder / 'first'
        cluster.until(lambda: checkpoints(first), 300)
        os.kill(
            int((first / '.lock').read_text().split()[0]), signal.SIGSTOP
        )  # Slurm lets it go on, to be stopped
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
    # A job whose runs cannot begin any more ends, or the results would wait for it for ever.
    after = '--kill-on-invalid-dep=yes --dependency=afterok:${job0}_2:${job0}_3 job2.sbatch'
    assert after in slurm.submission(arrays, tmp_path, False)
    packed = slurm.jobs(sweep, tmp_path, 4)
    assert [[run.name for run in job.runs] for job in packed[1:]] == [['pair0', 'pair2']]
    text = slurm.script(packed[0], tmp_path, ask._replace(pack=4))
    assert {'#SBATCH --gres=gpu:4', '#SBATCH --mem=48G', '#SBATCH --ntasks-per-node=4'} <= set(
        text.splitlines()
    )
    assert 'srun --exact --nodes=1 --ntasks=1 --cpus-per-task=4 --mem=12G --gres=gpu:1' in text
    assert '--dependency=afterok:${job0} job1.sbatch' in slurm.submission(packed, tmp_path, True)
    with pytest.raises(UserError, match='--memory must be as 16G'):
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


def test_the_sweep_of_the_page_becomes_jobs(tmp_path, monkeypatch):
    code = pages.python('sweeps-and-clusters', 'get_sweep')
    (tmp_path / 'mine.py').write_text(code)
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
    assert first.count('train ') == 2 and '#SBATCH --time=8:00:00' in first and 'train 2 longer' in second
    assert '--dependency=afterok:${job0} job1' in (tmp_path / 'runs/slurm/submit.sh').read_text()
    (tmp_path / 'mine.py').write_text(code.replace("{'time'", "{'hours'"))
    with pytest.raises(UserError, match=r'unknown field of Sweep.slurm .hours.'):
        run.main()


def test_without_slurm_only_the_scripts_are_written(submit, monkeypatch, capsys):
    folder = submit('--dry-run', '--gpus=0')
    assert 'gres' not in (folder / 'slurm' / 'job0.sbatch').read_text()
    said = capsys.readouterr().out
    assert '2 runs in 2 array jobs, and a job for the results' in said and '0 GPUs and 1 CPU for' in said
    assert f'submit: bash {folder}/slurm/submit.sh' in said
    submit('--dry-run', '--config.epochs=9')
    # The last job tells by the same changes which runs are finished.
    texts = [(folder / 'slurm' / f'{name}.sbatch').read_text() for name in ('job0', 'results')]
    assert all('--config.epochs=9' in text for text in texts) and '2 runs' in capsys.readouterr().out
    submit('--dry-run', '--gpus=volta:2', '--time=2-12', '--sbatch=constraint=v100', '--sbatch=exclusive')
    lines = (folder / 'slurm' / 'job0.sbatch').read_text().splitlines()
    assert {'#SBATCH --gres=gpu:volta:2', '#SBATCH --constraint=v100', '#SBATCH --exclusive'} <= {*lines}
    assert 'in one turn 240 GPU hours in all' in capsys.readouterr().out
    assert '#SBATCH --gres' not in (folder / 'slurm' / 'results.sbatch').read_text()
    monkeypatch.setenv('PATH', str(folder))
    with pytest.raises(UserError, match=r'expected sbatch .*: on the cluster, submit with bash .*submit\.sh'):
        submit()


@pytest.mark.parametrize('flag', [
    '--pack=-3', '--nodes=0', '--nodes=two', '--gpus=-1', '--gpus=volta:', '--time=nonsense', '--time=0',
    '--time=1:2:3:4', '--time=2:00', '--memory=16 G', '--cpus=0', '--at-once=-1', '--partition=a b',
    '--account=$(touch X)', '--sbatch=array=0-3', '--sbatch=a=b c', '--sbatch=time=2:00:00',
    '--sbatch=gres=gpu:4', '--sbatch=mem=8G', '--sbatch=nodes=2', '--jobs=0', '--retries=-1',
])  # fmt: skip
def test_what_a_job_cannot_ask_for_is_refused_before_anything_is_written(flag, submit, tmp_path):
    with pytest.raises(UserError, match=f'{flag.partition("=")[0]} must .*, got '):
        submit('--dry-run', flag)
    assert not (tmp_path / 'runs' / 'slurm').exists()


@pytest.mark.parametrize(('words', 'message'), [
    ('--slurm --collect', '--collect is for runs on this machine, not for --slurm: its last job collects'),
    ('--slurm --jobs 4', '--jobs is for runs on this machine, not for --slurm: --at-once limits'),
    ('--slurm --retries=1', '--retries is for runs on this machine, not for --slurm: the same command'),
    ('--slurm --follow', '--follow is for runs on this machine, not for --slurm: the command prints'),
    ('--slurm --pack=2 --at-once=2', '--at-once is for job arrays, got --pack 2: leave one of them out'),
    ('--slurm --time=9:30', r'--time must be at least 10 minutes, got 9:30 \(9.5 min\): two hours'),
    ('--gpus=0', '--gpus is for jobs of a cluster: give --slurm too'),
    ('--dry-run --sbatch=exclusive', '--sbatch is for jobs of a cluster: give --slurm too'),
    ('--test-only', '--test-only is for jobs of a cluster: give --slurm too'),
])  # fmt: skip
def test_flags_that_would_have_no_effect_are_refused(words, message, tmp_path, monkeypatch):
    (tmp_path / 'sweep.py').write_text(SWEEP.format(fields={}, folder=tmp_path))
    argv = ['run', f'{tmp_path}/sweep.py', f'--workdir={tmp_path}/runs', *words.split()]
    monkeypatch.setattr('sys.argv', argv)
    with pytest.raises(UserError, match=message):
        run.main()
    assert not list(tmp_path.glob('runs/*'))


@pytest.mark.parametrize(('said', 'helps'), [
    ('Invalid account or account/partition combination specified', '--account'),
    ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", '--pack, or'),
    ('Invalid job array specification', '--pack'),
    ('Invalid feature specification', '`sinfo -o "%P %f"`'),
    ('Invalid qos specification', '--sbatch qos=NAME'),
])  # fmt: skip
def test_a_refusal_of_sbatch_comes_with_the_remedy_that_fits(said, helps, tmp_path):
    (tmp_path / 'words').write_text(f'sbatch: error: Batch job submission failed: {said}\n')
    with pytest.raises(UserError) as refused:
        submission._call('job0.sbatch', tmp_path, 'bash', '-c', 'cat words >&2; exit 1')
    reason, _, remedy = str(refused.value).partition('; ')
    assert said in reason and helps in remedy


HOSTILE = ('a$(touch X)', 'a`touch X`', 'a;touch X', 'a b', "a'b", 'a"b', '*', '', '.', '..', 'a/b', '../x',
           '/abs', '-rf', 'a\nb', 'slurm', 'results.csv', 'one.log', 'a' * 200)  # fmt: skip


def test_names_that_reach_a_shell_or_leave_the_folder_are_refused(tmp_path):
    for name in HOSTILE:
        hostile = [Run(name, 'row', 'configs/base.py', {})]
        for check in (lambda runs: slurm.jobs(Sweep('', runs), tmp_path, 1), lambda r: sweeps.check(r, 'x')):
            with pytest.raises(UserError, match=r"a run's name must begin with .*; got "):
                check(hostile)
    with pytest.raises(UserError, match="got 'a b'; try 'a-b'"):
        sweeps.check_name('a b')
    sweeps.check_name('mutual-resnet32+wideresnet28_2-2-seed1')


@pytest.mark.parametrize('pack', [1, 2])
def test_paths_and_values_are_quoted_wherever_a_shell_reads_them(pack, tmp_path, monkeypatch):
    """Folders, the interpreter and values that would run something if they were not."""
    folder = tmp_path / 'it\'s $(touch X) & `touch X`; "50%" *' / 'runs'
    (folder / 'slurm').mkdir(parents=True)
    monkeypatch.chdir(folder.parent)
    changes = {'augment': 'crop(4)+flip', 'dataset': "npz:a b/$(touch X)';touch X;'"}
    runs = [Run(f'run{i}', 'row', 'c d.py:$(touch X)', changes) for i in range(2)]
    for name, text in (
        ('srun', 'printf "%s\\n" "$@"'), ('sbatch', 'echo 7'), ('my python', 'printf "%s\\n" "$@"'),
    ):  # fmt: skip
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr('sys.executable', str(tmp_path / 'my python'))
    todo, ask = slurm.jobs(Sweep('Title', runs), folder, pack), slurm.Resources(pack=pack)
    scripts = [slurm.script(job, folder, ask) for job in todo]
    scripts += [
        slurm.collector('a b.py:$(touch X)', ['--x=$(touch X)'], folder, ask),
        slurm.submission(todo, folder, pack > 1),
    ]
    environment = {'PATH': f'{tmp_path}:{os.environ["PATH"]}', 'SLURM_ARRAY_TASK_ID': '1'}
    for text in scripts:
        for line in text.splitlines():
            assert not line.startswith('#SBATCH') or len(line.split()) == 2
        subprocess.run(['bash', '-n'], input=text, text=True, check=True)
        done = subprocess.run(['bash', '-c', text], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, '')
    log = (folder / 'run1.log').read_text().splitlines()
    assert log[-7:] == [
        str(tmp_path / 'my python'), '-u', '-m', 'jaxcifar.main', *runs[1].arguments(folder)
    ][-7:]  # fmt: skip
    assert 'job0 7' in done.stdout and not list(tmp_path.rglob('X'))


def test_a_local_dry_run_lists_the_commands_and_makes_nothing(submit, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'runs'
    with pytest.raises(UserError, match=r'expected sbatch .*: on the cluster, submit with bash .*submit\.sh'):
        monkeypatch.setenv('PATH', str(tmp_path))
        submit()
    capsys.readouterr()
    monkeypatch.setattr(
        'sys.argv', ['run', f'{tmp_path}/sweep.py', '--workdir', f'{tmp_path}/no', '--dry-run']
    )
    run.main()
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith('[1/2] first: python -m jaxcifar.main --config tests/small.py --workdir ')
    assert second.endswith('# after first') and last.startswith('2 of 2 runs left in ')
    assert folder.exists() and not (tmp_path / 'no').exists()


def test_task_numbers_are_those_of_the_sweep(tmp_path):
    runs = [Run('a', '', 'c.py', {}), Run('b', '', 'c.py', {}, ('a',)), Run('c', '', 'c.py', {}, ('a',))]
    first, second = slurm.jobs(Sweep('Title', runs), tmp_path, 1)
    assert '0) train 0 a ' in slurm.script(first, tmp_path, slurm.Resources())
    text = slurm.script(second, tmp_path, slurm.Resources())
    assert '0) train 1 b ' in text and '1) train 2 c ' in text
