"""Add the sections of a long tail to a report: groups of classes, calibration, rejection."""

from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcifar.report.figures import COLOURS, STYLES, Picture, add_legend, colours, draw, label, render
from jaxcifar.report.page import Table
from jaxcifar.report.run_files import NONE, RunFiles, show

RISKS = ('error', 'balanced', 'worst')  # of jaxcifar.reject
GROUPS = ('many', 'medium', 'few', 'head', 'tail')


class Section(NamedTuple):
    """Hold a part of a run's report: its title, numbers, and a picture of them."""

    title: str
    table: Table
    picture: Picture


def sections(run: RunFiles) -> list[Section]:
    """Return the sections of a run with a long tail; none of others."""
    # Each section is left out until the file that it reads exists.
    found = []
    if run.groups():
        found.append(Section('Groups of classes', group_table(run), render(partial(draw_groups, run))))
    if run.calibration and run.calibration.get('fitted_on'):
        picture = render(partial(draw_reliability, run))
        found.append(Section('Calibration', calibration_table(run.calibration), picture))
    if run.rejection:
        title = f"Rejection by Chow's rule ({run.rejection['head_classes']} head and "
        title += f'{run.rejection["tail_classes"]} tail classes)'
        picture = render(partial(draw_rejection, run))
        found.append(Section(title, rejection_table(run.rejection), picture))
    return found


def group_table(run: RunFiles) -> Table:
    """Return recalls in percent: a row per choice of weights, set of test images, and member or ensemble."""
    head = ['weights', 'images', 'member', *(f'{g.replace("_", " ")} %' for g in ('accuracy', *run.groups()))]
    rows = []
    for which in ('best', 'last'):
        for part in ('test', 'test_lt'):
            of_members = [m.get(which, {}).get(part) for m in run.results.get('members', [])]
            # Scores on `test` are at the top level of results.json; those on other images have a key.
            top = run.results if part == 'test' else run.results.get(part, {})
            # The ensemble of one member is that member.
            ensemble = top.get('ensemble', {}).get(which) if len(of_members) > 1 else None
            # The balanced images and the long-tailed ones may not both have been tested.
            for name, scores in zip([*run.titles(), 'ensemble'], [*of_members, ensemble]):
                if scores:
                    cells = [scores.get(g) for g in ('accuracy', *run.groups())]
                    rows.append([show(which), part, show(name), *map(_percent, cells)])
    return [head, *rows] if rows else []


def _percent(value: float | None) -> str:
    return NONE if value is None else f'{100 * value:.2f}'


def calibration_table(calibration: dict) -> Table:
    """Return temperatures, and NLL and calibration error before and after them."""
    # All weights were scored on the same parts, so the first ones determine the columns.
    parts = list(next(iter(calibration['weights'].values()))['mean']['parts'])
    head = ['weights', 'member', 'T', *(f'{part} {what}' for part in parts for what in ('NLL', 'ECE %'))]
    rows = []
    for which, report in calibration['weights'].items():
        for member in [*report['members'], {'name': 'mean', **report['mean']}]:
            row = [show(which), show(member['name']), f'{member["temperature"]:.3f}']
            for part in parts:
                # Both numbers in one cell: the change is what the table is read for.
                before, after = member['parts'][part]['before'], member['parts'][part]['after']
                row.append(f'{before["nll"]:.3f} → {after["nll"]:.3f}')
                row.append(f'{100 * before["ece"]:.2f} → {100 * after["ece"]:.2f}')
            rows.append(row)
    return [head, *rows]


def rejection_table(found: dict) -> list[list[str]]:
    """Return areas under the risk-coverage curves, with their 95 % intervals."""
    rows = [['images', 'rule', *(f'area, {risk}' for risk in RISKS)]]
    for part, rules in found['parts'].items():
        for name, risks in rules.items():
            cells = [(risks[r]['area'], *risks[r]['interval']) for r in RISKS]
            rows.append([part, name, *('{:.3f} ({:.3f}-{:.3f})'.format(*cell) for cell in cells)])
    return rows


def draw_groups(run: RunFiles) -> Figure:
    """Draw the recall of each group of classes over the epochs, a line for each member."""
    groups = [g for g in ('mean_recall', *GROUPS[:3]) if g in run.groups()]
    figure = Figure(figsize=(12, 3.3), layout='constrained')
    # matplotlib returns a bare Axes for a single panel.
    panels = list(np.atleast_1d(figure.subplots(1, len(groups), sharey=True)))
    for ax, group in zip(panels, groups):
        epochs, values = run.curve(run.watched, group)
        for name, line, colour in zip(run.titles(), values, colours(len(values))):
            # One member [1,E] at a time: a mean over different losses would say nothing.
            draw(ax, epochs, 100 * line[None], color=colour, label=show(name))
    label(panels, [f'{g.replace("_", " ")} (%), {run.watched}' for g in groups])
    add_legend(panels[0], [line for line in panels[0].lines if not line.get_label().startswith('_')])
    return figure


def draw_reliability(run: RunFiles) -> Figure:
    """Draw accuracy over confidence of each member and of their mean, before and after calibration."""
    report = next(iter(run.calibration['weights'].values()))
    members = [*zip(run.titles(), report['members']), ('mean', report['mean'])]
    # Up to four panels a row, and as many rows as it takes.
    columns = min(len(members), 4)
    rows = -(-len(members) // columns)
    figure = Figure(figsize=(12, 3.1 * rows), layout='constrained')
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    parts = [part for part in ('test_lt', 'test') if part in report['mean']['parts']]
    for ax, (name, member) in zip(panels, members):
        # The diagonal is perfect calibration; a curve below it is overconfident.
        ax.plot([0, 1], [0, 1], color='grey', lw=0.8)
        for part, colour in zip(parts, COLOURS):
            for when, style in (('before', ':'), ('after', '-')):
                numbers = member['parts'][part][when]
                _draw_bins(ax, numbers['reliability'], color=colour, ls=style, label=f'{part} {when}')
        ax.set_title(show(name), loc='left', parse_math=False)
        ax.set_xlabel('confidence')
    # The last row may have more panels than members.
    for ax in panels[len(members) :]:
        ax.set_axis_off()
    panels[0].set_ylabel('accuracy')
    # Without the diagonal, which has no name.
    add_legend(panels[0], panels[0].lines[1:])
    return figure


def _draw_bins(ax: Axes, bins: dict, **line):
    images, confidence, correct = (np.array(bins[k]) for k in ('images', 'confidence', 'correct'))
    # An empty bin has no mean, and would be 0/0.
    filled = images > 0
    points = (v[filled] / images[filled] for v in (confidence, correct))
    ax.plot(*points, marker='o', ms=3, lw=1.2, **line)


def draw_rejection(run: RunFiles) -> Figure:
    """Draw balanced and worst-group error over coverage, a line for each rule and set of images."""
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    names = dict(zip(run.members, run.titles()))
    # Colour tells rules apart, and the style of a line the images that they were tested on.
    for ax, risk in zip(panels, ('balanced', 'worst')):
        for part, style in zip(run.rejection['parts'], STYLES):
            rules = run.rejection['parts'][part]
            for (name, risks), colour in zip(rules.items(), colours(len(rules))):
                line = {'color': colour, 'ls': style, 'lw': 1.5}
                text = f'{show(names.get(name, name))}, {part}'
                ax.plot(run.rejection['coverage'], risks[risk]['curve'], label=text, **line)
        ax.set_xlabel('coverage')
        ax.set_title(f'{risk} error of the answers', loc='left')
    add_legend(figure, panels[0].lines, loc='outside right upper')
    return figure
