"""An x-ray as a table: figures on the left, the source on the right, and beneath a line what is wrong with it.

Contents
    as_text     for a terminal
    as_html     for a notebook; without any style, as GitHub shows it, it stays a legible table: bars are characters,
                marks are characters, and the source keeps its indentation

Both are made of the same rows.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from styleforge_lib.lab.roofline import quantity
from styleforge_lib.lab.xray_findings import Finding, figure
from styleforge_lib.runtime.emulator import LineMetrics, Requests

BAR_CELLS = 5
EIGHTHS = " ▏▎▍▌▋▊▉█"
WRONG, BETTER = "✗", "▲"
VERB_BREAK = ", "  # between loads and stores; HTML breaks the line there
FOLDED_GAP = 8  # this many lines in a row that nothing was seen of are folded
SENTENCE_WIDTH = 110  # characters of a terminal
# Characters of source in a notebook's table, where a longer line is broken, less what each column of figures takes: the
# whole stays within 950 pixels.
SOURCE_WIDTH, COLUMN_WIDTH = 100, 8
# How many times the ideal, and what share of the lanes idle, is how hot: the classes heat1 to heat4.
HOT_RATIOS = (1.25, 2, 4, 8)
HOT_IDLE = (0.1, 0.25, 0.5, 0.75)

PTX_LEVEL = (
    "Counts are PTX-level: instructions of warps before ptxas merges, vectorises and predicates them; a GPU's profiler "
    "counts its own code."
)
NOTE_PARTED = "parted: warps that left a branch both ways."
NOTE_SECTORS = (
    "sectors: the 32-byte pieces that one request of a warp touches, and (ideal) the fewest that hold as many bytes; "
    "moved: all of them, before any cache."
)
NOTE_WAYS = (
    "ways: the passes that one request takes over the 32 banks, and (ideal) the fewest, which is 2 and 4 for 8 and 16 "
    "bytes a lane; shared: bytes asked for."
)
NOTE_LOCAL = "local: bytes of arrays and spilled registers that live in memory."
NOTE_FLOP = (
    "FLOP: sums, products, quotients and functions count one, fused multiply-adds two, matrix instructions 2*m*n*k; "
    "its different sectors: each 32-byte piece that was read, and each that was written, counted once, which is what "
    "DRAM moves at least."
)
DONE = {"load": "read", "store": "written", "atomic": "in atomics"}


@dataclass(frozen=True)
class Column:
    """One column of figures: its heading, what it says of a line, and how hot that is (0 to 4)."""

    heading: str
    text: Callable[[LineMetrics], str]
    heat: Callable[[LineMetrics], int] = lambda metrics: 0


@dataclass(frozen=True)
class Row:
    """One source line, or (number None) a fold in the source."""

    number: int | None
    source: str
    metrics: LineMetrics | None = None
    mark: str = ""
    findings: tuple[Finding, ...] = field(default=())


# --- what both show -------------------------------------------------------------------------------------------------


def _columns(total: LineMetrics) -> list[Column]:
    spaces = {space for space, _ in total.accesses}
    columns = [Column("lanes", lambda m: figure(m.active_lanes) if m.instructions else "", _idle_heat)]
    if total.parted:
        columns.append(Column("parted", lambda m: f"{m.parted:,} of {m.branches:,}" if m.parted else "", _parted_heat))
    if "global" in spaces:
        columns.append(Column("sectors (ideal)", _units_text("global"), _units_heat("global")))
        columns.append(Column("moved", _moved_text))
    if "shared" in spaces:
        columns.append(Column("ways (ideal)", _units_text("shared"), _units_heat("shared")))
        columns.append(Column("shared", _bytes_text("shared")))
    if "local" in spaces:
        columns.append(Column("local", _bytes_text("local")))
    if total.flops:
        columns.append(Column("FLOP", lambda m: quantity(sum(m.flops.values()), "").strip() if m.flops else ""))
    return columns


def _units_text(space: str) -> Callable[[LineMetrics], str]:
    def text(metrics: LineMetrics) -> str:
        parts = [
            f"{verb} {figure(asked.units / asked.requests)} ({figure(asked.ideal / asked.requests)})"
            for (of, verb), asked in sorted(metrics.accesses.items())
            if of == space and asked.requests
        ]
        return VERB_BREAK.join(parts)

    return text


def _moved_text(metrics: LineMetrics) -> str:
    return _by_verb({verb: 32 * asked.units for (of, verb), asked in metrics.accesses.items() if of == "global"})


def _bytes_text(space: str) -> Callable[[LineMetrics], str]:
    return lambda metrics: _by_verb({v: asked.bytes for (of, v), asked in metrics.accesses.items() if of == space})


def _by_verb(sizes: dict[str, int]) -> str:
    """Write sizes; where a line both loads and stores, each with its verb."""
    parts = [(verb, _size(size)) for verb, size in sorted(sizes.items()) if size]
    return parts[0][1] if len(parts) == 1 else VERB_BREAK.join(f"{verb} {size}" for verb, size in parts)


def _size(count: int) -> str:
    return quantity(count, "B") if count >= 1000 else f"{count} B"


def _level(value: float, limits: tuple[float, ...]) -> int:
    return sum(value >= limit for limit in limits)


def _units_heat(space: str) -> Callable[[LineMetrics], int]:
    def heat(metrics: LineMetrics) -> int:
        ratios = [a.units / a.ideal for (of, _), a in metrics.accesses.items() if of == space and a.ideal]
        return _level(max(ratios, default=0), HOT_RATIOS)

    return heat


def _idle_heat(metrics: LineMetrics) -> int:
    return _level(1 - metrics.active_lanes / 32, HOT_IDLE) if metrics.instructions else 0


def _parted_heat(metrics: LineMetrics) -> int:
    return _level(metrics.parted / max(1, metrics.branches), HOT_IDLE)


def _rows(xray) -> Iterator[Row]:
    """Yield the lines from the kernel's declaration to its end, and folds for long stretches without a figure."""
    source = xray.source.splitlines()
    wrong, better = (*xray.races, *xray.faults), xray.advice
    active = sorted({line for line in (*xray.lines, *(f.line for f in wrong)) if 0 < line <= len(source)})
    if not active:
        return
    first, last = active[0], active[-1]
    first = next(
        (n for n in range(first, 0, -1) if "__global__" in source[n - 1] or "__device__" in source[n - 1]), first
    )
    last = next((n for n in range(last, len(source) + 1) if source[n - 1].startswith("}")), last)
    marked = {f.other_line for f in wrong} | {f.line for f in wrong}
    advised = {f.line for f in better}
    number = first
    while number <= last:
        following = next((n for n in active if n >= number), last)
        if following - number > FOLDED_GAP:
            yield Row(None, f"⋮ lines {number + 1} to {following - 2}", mark="")
            number = following - 1
            continue
        findings = tuple(f for f in (*wrong, *better) if f.line == number)
        mark = WRONG if number in marked else BETTER if number in advised else ""
        yield Row(number, source[number - 1].expandtabs(4), xray.lines.get(number), mark, findings)
        number += 1


def _bar(share: float) -> str:
    """Return a bar of up to BAR_CELLS characters; anything above nothing shows."""
    eighths = max(1, round(8 * BAR_CELLS * share)) if share > 0 else 0
    return EIGHTHS[8] * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _title(xray) -> str:
    grid, block = ("({},{},{})".format(*size) for size in (xray.grid, xray.block))
    total = xray.grid[0] * xray.grid[1] * xray.grid[2]
    looked = "all" if len(xray.blocks) == total else f"{len(xray.blocks):,} of {total:,}"
    noun = "block" if total == 1 else "blocks"
    return f"grid {grid}, block {block}; {looked if total > 1 else 'its one'} {noun} looked at"


def _verdict(xray) -> str:
    counts = [(len(xray.races), "race"), (len(xray.faults), "fault")]
    found = [f"{count} {noun}{'s' * (count > 1)}" for count, noun in counts if count]
    text = f"{WRONG} {' and '.join(found)}" if found else "✓ no race, no fault"
    return text + (": the run ended there, and the counts with it" if xray.stopped else "")


def _sums(xray) -> str:
    """One sentence of what all lines did together."""
    total = xray.total
    parts = [f"{total.instructions:,} warp instructions, {figure(total.active_lanes)} lanes active on average"]
    if total.sectors:
        asked = [
            f"{_size(a.bytes)} {DONE[verb]} ({_size(32 * a.units)} moved)" for verb, a in _of_space(total, "global")
        ]
        parts.append(f"global memory: {', '.join(asked)}")
    if total.shared_requests:
        fewest = "the fewest possible" if total.ways <= total.ideal_ways else f"where {total.ideal_ways:,} would do"
        asked = [f"{_size(a.bytes)} {DONE[verb]}" for verb, a in _of_space(total, "shared")]
        parts.append(f"shared memory: {', '.join(asked)} in {total.ways:,} passes over the banks, {fewest}")
    if total.bytes.get("local"):
        asked = [f"{_size(a.bytes)} {DONE[verb]}" for verb, a in _of_space(total, "local")]
        parts.append(f"local memory: {', '.join(asked)}")
    if total.flops:
        done = [f"{quantity(count, 'FLOP')} in {precision}" for precision, count in sorted(total.flops.items())]
        over = f", {figure(xray.intensity)} for each byte of its different sectors" if xray.intensity else ""
        parts.append(f"arithmetic: {', '.join(done)}{over}")
    return "; ".join(parts) + "."


def _of_space(total: LineMetrics, space: str) -> list[tuple[str, Requests]]:
    return [(verb, asked) for (of, verb), asked in sorted(total.accesses.items()) if of == space]


def _notes(xray) -> list[str]:
    spaces = {space for space, _ in xray.total.accesses}
    notes = ["lanes: how many of 32 took part, on average."]
    notes += [NOTE_PARTED] if xray.total.parted else []
    notes += [
        note
        for space, note in (("global", NOTE_SECTORS), ("shared", NOTE_WAYS), ("local", NOTE_LOCAL))
        if space in spaces
    ]
    return notes + ([NOTE_FLOP] if xray.total.flops else [])


def _lineless(xray) -> list[Finding]:
    """Return what is wrong at no line of the source."""
    last = len(xray.source.splitlines())
    return [f for f in (*xray.races, *xray.faults) if not 0 < f.line <= last]


def _most(xray) -> int:
    return max((metrics.instructions for metrics in xray.lines.values()), default=0)


# --- text -----------------------------------------------------------------------------------------------------------


def as_text(xray) -> str:
    """Return the table as text of a fixed pitch."""
    columns, rows, most = _columns(xray.total), list(_rows(xray)), _most(xray)
    cells = [[column.text(row.metrics) if row.metrics else "" for column in columns] for row in rows]
    counts = [f"{row.metrics.instructions:,}" if row.metrics else "" for row in rows]
    count_width = max(len("instructions") - BAR_CELLS - 1, *map(len, counts), 0) if rows else 0
    widths = [max(len(c.heading), *(len(line[i]) for line in cells)) for i, c in enumerate(columns)] if rows else []
    head = ["  line", "instructions".rjust(BAR_CELLS + 1 + count_width)]
    head += [column.heading.rjust(width) for column, width in zip(columns, widths, strict=True)] if rows else []
    lines = [f"x-ray of {xray.kernel}: {_title(xray)}", _verdict(xray), *_wrapped(_lineless(xray)), "", "  ".join(head)]
    for row, texts, count in zip(rows, cells, counts, strict=True):
        share = row.metrics.instructions / most if row.metrics and most else 0
        parts = [f"{row.mark or ' '} {row.number if row.number is not None else '':>4}",
                 f"{_bar(share):<{BAR_CELLS}} {count:>{count_width}}"]  # fmt: skip
        parts += [text.rjust(width) for text, width in zip(texts, widths, strict=True)]
        lines.append(("  ".join(parts) + "  │ " + row.source).rstrip())
        lines += _wrapped(row.findings)
    lines += ["", *textwrap.wrap(_sums(xray), SENTENCE_WIDTH), *textwrap.wrap(PTX_LEVEL, SENTENCE_WIDTH)]
    lines += textwrap.wrap(" ".join(_notes(xray)), SENTENCE_WIDTH)
    return "\n".join(lines)


def _wrapped(findings) -> list[str]:
    found: list[str] = []
    for finding in findings:
        found += textwrap.wrap(
            f"{_mark(finding)} {finding.sentence}", SENTENCE_WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 10
        )
    return found


def _mark(finding: Finding) -> str:
    return BETTER if finding.kind in ("uncoalesced", "bank conflict", "divergence") else WRONG


# --- HTML -----------------------------------------------------------------------------------------------------------


def as_html(xray) -> str:
    """Return the table as HTML that stands on its own."""
    columns, most = _columns(xray.total), _most(xray)
    wide = len(columns) + 5
    head = "".join(f'<th align="right">{html.escape(column.heading).replace(" ", "<br>")}</th>' for column in columns)
    out = [
        f"<div class='sf-xray'><style>{Path(__file__).with_name('xray.css').read_text('utf-8')}</style>",
        f"<p><b>x-ray of <code>{html.escape(xray.kernel)}</code></b>: {html.escape(_title(xray))}. "
        f'<b class="{"wrong" if xray.races or xray.faults else "good"}">{html.escape(_verdict(xray))}</b></p>',
        *(f"<p>{WRONG} {html.escape(finding.sentence)}</p>" for finding in _lineless(xray)),
        '<div class="scroll"><table><thead><tr><th></th><th align="right">line</th>'
        f'<th align="right" colspan="2">instructions</th>{head}<th align="left">source</th></tr></thead><tbody>',
    ]
    for row in _rows(xray):
        kind = {WRONG: "wrong", BETTER: "better"}.get(row.mark, "")
        out.append(f'<tr class="{kind}"><td class="mark">{row.mark}</td>{_html_figures(row, columns, most)}</tr>')
        for finding in row.findings:
            severity = "wrong" if _mark(finding) == WRONG else "better"
            out.append(
                f'<tr class="{severity} says"><td class="mark"></td><td colspan="{wide - 1}" align="left">'
                f"{_mark(finding)} {html.escape(finding.sentence)}</td></tr>"
            )
    notes = "<br>".join(map(html.escape, _notes(xray)))
    out.append(
        f"</tbody></table></div><p>{html.escape(_sums(xray))} {html.escape(PTX_LEVEL)}</p>"
        f"<details><summary>What the columns mean</summary>{notes}</details></div>"
    )
    return "\n".join(out)


def _html_figures(row: Row, columns: list[Column], most: int) -> str:
    number = "" if row.number is None else row.number
    cells = [f'<td class="number" align="right">{number}</td>']
    if row.metrics:
        share = row.metrics.instructions / most if most else 0
        cells.append(
            f'<td class="bar" align="left">{_bar(share)}</td><td align="right">{row.metrics.instructions:,}</td>'
        )
        for column in columns:
            heat = column.heat(row.metrics)
            style = f' class="heat{heat}"' if heat else ""
            cells.append(f'<td align="right"{style}>{_html_figure(column.text(row.metrics))}</td>')
    else:
        cells.append("<td></td>" * (2 + len(columns)))
    source = _html_source(row, SOURCE_WIDTH - COLUMN_WIDTH * len(columns))
    cells.append(f'<td class="source" align="left">{source}</td>')
    return "".join(cells)


def _html_figure(text: str) -> str:
    return "<br>".join(html.escape(part).replace(" ", "&nbsp;") for part in text.split(VERB_BREAK))


def _html_source(row: Row, width: int) -> str:
    if row.number is None:
        return f"<i>{html.escape(row.source)}</i>"
    # Broken here and not by the page, so that the table is never wider than a notebook, with or without styles.
    margin = " " * (len(row.source) - len(row.source.lstrip(" ")))
    parts = textwrap.wrap(row.source.strip(), width, initial_indent=margin, subsequent_indent=margin + "    ",
                          break_long_words=False, break_on_hyphens=False, replace_whitespace=False)  # fmt: skip
    return "<br>".join(f"<code>{html.escape(part).replace(' ', '&nbsp;')}</code>" for part in parts)
