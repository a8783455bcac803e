"""Write and read run.json: what each session of a run ran on, and how fast."""

from collections.abc import Iterable
from pathlib import Path

from jaxcifar.machine.files import read_json, read_json_or_set_aside, reading, write_json
from jaxcifar.machine.profile import share_of_peak

RUN = 'run.json'


def append(workdir: Path, session: dict):
    """Append a session, so that a run over several machines names all of them."""
    run = _sessions(workdir)
    run['sessions'].append(session)
    write_json(workdir / RUN, run)


def last_session(workdir: Path) -> dict:
    """Return what run.json says of the newest session, {} where it says nothing."""
    return (_sessions(workdir)['sessions'] or [{}])[-1]


def trained_with(workdir: Path) -> dict:
    """Return the commits, devices and packages of all sessions of a run, from run.json."""
    with reading(workdir / RUN, 'delete it: a card does without'):
        sessions = (read_json(workdir / RUN) or {}).get('sessions') or [{}]
        # A run may begin on one machine and end on another: the last session alone would hide the first.
        lists = [session.get('devices', []) for session in sessions]
        versions = [session.get('packages', {}) for session in sessions]
        names = dict.fromkeys(name for packages in versions for name in packages)
        return {
            'commit': _distinct(session.get('commit', '') for session in sessions),
            'devices': list(dict.fromkeys(device for devices in lists for device in devices)),
            'packages': {n: _distinct(packages[n] for packages in versions if n in packages) for n in names},
        }


def record_speed(workdir: Path, clock) -> list[str]:
    """Add the steps' speed to the session in run.json, and return it as a line; [] without a whole epoch."""
    if not clock.mean_rate():
        return []
    program = clock.program
    # FLOP/s of one device, compilation not included.
    flops = program.flops * clock.steps_per_second()
    share = share_of_peak(flops)
    run = _sessions(workdir)
    run['sessions'] = run['sessions'] or [{}]  # the file may be gone
    run['sessions'][-1]['speed'] = {
        'compile_seconds': round(program.seconds, 2),
        'flops_per_step_and_device': program.flops,
        'images_per_second': round(clock.mean_rate(), 1),
        'share_of_bfloat16_peak': share,
    }
    write_json(workdir / RUN, run)
    of_peak = '' if share is None else f', {share:.1%} of the bfloat16 peak'
    return [
        f'{clock.mean_rate():,.0f} images/s, {flops / 1e9:,.0f} GFLOP/s a device{of_peak}; '
        f'compiled in {program.seconds:.1f} s'
    ]


def _sessions(workdir: Path) -> dict:
    """Return run.json; a damaged one is set aside, and the list of sessions starts over."""
    run = read_json_or_set_aside(workdir / RUN, sessions=list) or {'sessions': []}
    return {**run, 'sessions': [session for session in run['sessions'] if isinstance(session, dict)]}


def _distinct(words: Iterable[str]) -> str:
    """Return the distinct non-empty words, in order, joined by commas."""
    return ', '.join(dict.fromkeys(filter(None, words)))
