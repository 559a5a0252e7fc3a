"""A schedule as one self-contained web page: stages, loops and axes, before and after each step.

>>> from tinycomp import te
>>> A = te.placeholder((8,), name="A")
>>> B = te.compute((8,), lambda i: A[i] + 1.0, name="B")
>>> s = te.create_schedule(B)
>>> _ = s[B].split("i", factor=4)
>>> page = schedule_html(s)
>>> "i.outer" in page and "<script src" not in page
True

What TVM's TEDD drew (stage graph, schedule tree, axis relations) in one page, with the steps to
walk through.
"""

from __future__ import annotations

from html import escape

from ..tir.schedule import Schedule
from .loops import Relations, Snapshot, loop_lines, stage_graph


def schedule_html(schedule: Schedule) -> str:
    """The page, without any external resource. Open it in a browser, or show it in a notebook."""
    functions = schedule.snapshots()
    calls = [step.call() for step in schedule.steps]
    relations = Relations()
    panels: list[str] = []
    before: Snapshot | None = None
    for number, func in enumerate(functions):
        now = Snapshot(func)
        if before is None:
            relations.add(now)
        else:
            relations.step(schedule.steps[number - 1].stage, now)
        panels.append(_panel(number, now, before, relations))
        before = now
    rows = ["start", *calls]
    steps = "".join(
        f'<li><button data-step="{i}"><code>{escape(call)}</code></button></li>'
        for i, call in enumerate(rows)
    )
    name = escape(schedule.func.name)
    return _PAGE.format(
        title=f"Schedule of {name}", style=_STYLE, script=_SCRIPT, steps=steps,
        last=len(functions) - 1, panels="".join(panels),
    )  # fmt: skip


def _panel(number: int, now: Snapshot, before: Snapshot | None, relations: Relations) -> str:
    """What the page shows after `number` steps."""
    axes = "".join(
        f'<div class="stage-axes"><h3>{escape(stage)}</h3>{relations.render(stage, now)}</div>'
        for stage in now.axes
    )
    return (
        f'<section class="panel" id="step{number}"><h2>Stages</h2>'
        f'<div class="graph">{stage_graph(now)}</div>'
        f'<div class="columns"><div><h2>Loops</h2>{loop_lines(now, before)}</div>'
        f"<div><h2>Axes</h2>{axes}</div></div></section>"
    )


_STYLE = """
:root { --spatial: #1a5fb4; --reduce: #c64600; --ordered: #813d9c; --ink: #1d2129;
  --soft: #f4f6f9; --line: #d5dae2; }
* { box-sizing: border-box; }
body { margin: 0; font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: #fff; }
header { padding: 12px 20px; border-bottom: 1px solid var(--line); display: flex; gap: 24px;
  align-items: center; flex-wrap: wrap; position: sticky; top: 0; background: #fff; z-index: 1; }
h1 { font-size: 18px; margin: 0; } h2 { font-size: 14px; margin: 18px 0 8px; color: #555e6b; }
h3 { font: 600 13px ui-monospace, monospace; margin: 12px 0 6px; }
main { display: grid; grid-template-columns: 320px minmax(0, 1fr); }
nav { border-right: 1px solid var(--line); padding: 10px; }
nav ol { margin: 0; padding: 0; list-style: none; }
nav button { width: 100%; text-align: left; border: 0; background: none; padding: 5px 8px;
  border-radius: 5px; cursor: pointer; color: #68717e; overflow-wrap: anywhere; }
nav button.done { color: var(--ink); }
nav button.now { background: #e3ecfa; box-shadow: inset 3px 0 0 var(--spatial); }
nav button:hover { background: var(--soft); }
nav code { font: 12px/1.4 ui-monospace, monospace; }
.walk { display: flex; gap: 8px; align-items: center; }
.walk button { border: 1px solid var(--line); background: #fff; border-radius: 5px;
  padding: 3px 12px; cursor: pointer; font-size: 14px; }
.walk input { width: 220px; } .walk output { min-width: 84px; color: #555e6b; }
.legend { display: flex; gap: 12px; font-size: 12px; flex-wrap: wrap; }
.panel { display: none; padding: 0 20px 24px; } .panel.shown { display: block; }
.graph { overflow-x: auto; }
.columns { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 24px; }
.columns > div { min-width: 0; } .stage-axes { overflow-x: auto; }
pre { margin: 0; padding: 10px 0; background: var(--soft); border-radius: 6px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.line { display: block; padding: 0 12px; min-height: 1.5em; white-space: pre;
  width: max-content; min-width: 100%; }
.line.changed { background: #fff3c9; box-shadow: inset 3px 0 0 #e5a50a; }
b.spatial, .legend .spatial { color: var(--spatial); }
b.reduce, .legend .reduce { color: var(--reduce); }
b.ordered, .legend .ordered { color: var(--ordered); }
b.block { color: #26733b; }
.mark { border-radius: 3px; padding: 0 3px; }
.parallel { background: #d3f2da; } .vectorized { background: #d6e6fb; }
.unrolled { background: #ece0f7; } .thread { background: #fbdcd0; }
svg text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: var(--ink); }
svg text.head { font-weight: 600; }
svg rect { fill: #fff; stroke: #8a94a3; }
.box.input rect { fill: var(--soft); stroke-dasharray: 4 3; } .box.stage rect { fill: #fff; }
.box.output rect { fill: #e8f6ec; stroke: #26733b; }
.box.axis.spatial rect { stroke: var(--spatial); } .box.axis.reduce rect { stroke: var(--reduce); }
.box.axis.ordered rect { stroke: var(--ordered); }
.box.axis.leaf rect { stroke-width: 2; } .box.axis.gone rect { stroke-dasharray: 4 3; }
.box.axis text.head { font-weight: 400; } .box.axis.gone text { fill: #68717e; }
.chip { display: inline-block; border: 2px solid; border-radius: 5px; padding: 2px 8px;
  margin: 0 6px 6px 0; font: 12px ui-monospace, monospace; }
.chip.spatial { border-color: var(--spatial); } .chip.reduce { border-color: var(--reduce); }
.chip.ordered { border-color: var(--ordered); }
path.edge { fill: none; stroke: #8a94a3; stroke-width: 1.4; } path.weak { stroke-dasharray: 4 3; }
@media (max-width: 1000px) { main, .columns { grid-template-columns: minmax(0, 1fr); }
  nav { border-right: 0; border-bottom: 1px solid var(--line); } }
"""

_SCRIPT = """
const panels = [...document.querySelectorAll('.panel')];
const buttons = [...document.querySelectorAll('nav button')];
const slider = document.querySelector('.walk input');
const count = document.querySelector('.walk output');
function show(step) {
  step = Math.max(0, Math.min(panels.length - 1, step));
  panels.forEach((p, i) => p.classList.toggle('shown', i === step));
  buttons.forEach((b, i) => {
    b.classList.toggle('now', i === step);
    b.classList.toggle('done', i <= step);
    b.setAttribute('aria-current', i === step ? 'step' : 'false');
  });
  slider.value = step;
  count.textContent = 'step ' + step + ' of ' + (panels.length - 1);
}
const now = () => Number(slider.value);
buttons.forEach(b => b.addEventListener('click', () => show(Number(b.dataset.step))));
slider.addEventListener('input', () => show(now()));
document.querySelector('#back').addEventListener('click', () => show(now() - 1));
document.querySelector('#next').addEventListener('click', () => show(now() + 1));
document.addEventListener('keydown', e => {
  if (e.target === slider) return;
  if (e.key === 'ArrowLeft') show(now() - 1);
  if (e.key === 'ArrowRight') show(now() + 1);
});
const asked = /^#step(\\d+)$/.exec(location.hash);
show(asked ? Number(asked[1]) : panels.length - 1);
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body><header><h1>{title}</h1>
<div class="walk"><button id="back" aria-label="step back">&#8592;</button>
<input type="range" min="0" max="{last}" value="{last}" aria-label="step">
<button id="next" aria-label="next step">&#8594;</button><output></output></div>
<div class="legend"><b class="spatial">spatial</b><b class="reduce">reduction</b>
<b class="ordered">ordered (scan)</b><span class="mark parallel">parallel</span>
<span class="mark vectorized">vectorized</span><span class="mark unrolled">unrolled</span>
<span class="mark thread">GPU thread</span></div></header>
<svg width="0" height="0" style="position:absolute"><defs><marker id="arrow" viewBox="0 0 8 8"
 refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,0 L8,4 L0,8 z"
 fill="#8a94a3"/></marker></defs></svg>
<main><nav><ol>{steps}</ol></nav><div>{panels}</div></main>
<script>{script}</script></body></html>
"""
