"""What became of the images of a batch: a page to look through, and a table."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from napari_sam2.batch_worker import DONE, FAILED, INCOMPLETE, REPORTS, SKIPPED, JobResult
from napari_sam2.io.volume import WriteError
from sam2_engine.whole_file import write_text

_COLUMNS = ("name", "image", "status", "object", "object name", "voxels", "size", "unit", "seconds")
_FIRST = {FAILED: 0, INCOMPLETE: 1}
_STATUSES = (DONE, SKIPPED, INCOMPLETE, FAILED)
_PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem;
         padding: 0 1rem; color: #1d2329; background: #fff; }
  h1 { font-size: 1.4rem; margin: 0; }
  p.sum { color: #59636e; margin: .2rem 0 1.5rem; }
  table { border-collapse: collapse; width: 100%; }
  td, th { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0;
           border-top: 1px solid #d8dee4; }
  th { font-weight: 600; color: #59636e; border-top: 0; }
  img { width: 120px; height: 120px; object-fit: contain; background: #000; display: block; }
  .failed { color: #b42318; font-weight: 600; }
  .note { color: #8a5a00; }
  .right { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .path { color: #59636e; font-size: .85em; overflow-wrap: anywhere; }
  @media (prefers-color-scheme: dark) {
    body { color: #dfe4ea; background: #16191d; }
    td, th { border-color: #343b43; }
    p.sum, th, .path { color: #98a2ad; } .failed { color: #ff8a7a; } .note { color: #e0b050; }
  }
</style>
<h1>{{ title }}</h1>
<p class="sum">{{ summary }}</p>
<table>
  <tr><th></th><th>image</th><th>objects</th><th class="right">time</th></tr>
  {% for result in results %}
  <tr>
    <td>{% if result.thumbnail %}<img alt="{{ result.name }}" loading="lazy"
      src="data:image/png;base64,{{ result.thumbnail }}">{% endif %}</td>
    <td><strong>{{ result.name }}</strong>
      <div class="path">{{ result.image }}</div>
      {% if result.message %}<div class="failed">{{ result.message }}</div>{% endif %}
      {% for note in result.notes %}<div class="note">{{ note }}</div>{% endfor %}</td>
    <td>{% for object in result.objects %}<div>{{ object.name }}:
      {% if object.voxels %}{{ size(object) }}{% else %}<span class="failed">not found</span>
      {% endif %}</div>{% endfor %}</td>
    <td class="right">{{ "%.1f s" % result.seconds if result.seconds else "" }}
      {% if result.status == skipped %}<div class="path">done before</div>{% endif %}</td>
  </tr>
  {% endfor %}
</table>
</html>
"""


def write_report(out: Path, results: Sequence[JobResult], left: int = 0) -> None:
    """Write report.html (failed ones first, with thumbnails) and report.csv (a row an object).

    left: how many jobs have not been looked at, because the run was stopped.

    Raises: WriteError, when it has written what it can.
    """
    page, table = REPORTS
    problems = []
    for name, text in ((table, _csv(results)), (page, _html(results, left))):
        try:
            write_text(out / name, text)
        except OSError as error:
            problems.append(f"{out / name} could not be written: {error.strerror or error}.")
    if problems:
        problems.append("All labels are there; the same command skips them and reports anew.")
        raise WriteError(" ".join(problems))


def summary(results: Sequence[JobResult], left: int = 0) -> str:
    """ "120 done, 3 done before, 1 failed"."""
    counts = Counter(result.status for result in results)
    texts = [f"{counts[status]} {status}" for status in _STATUSES if counts[status]]
    if left:
        texts.append(f"{left} not yet looked at")
    return ", ".join(texts) or "nothing to do"


def _html(results: Sequence[JobResult], left: int) -> str:
    from jinja2 import Environment

    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_PAGE)
    text: str = page.render(
        title="Segmentation report",
        summary=f"{summary(results, left)} · {datetime.now().astimezone():%Y-%m-%d %H:%M}",
        results=sorted(results, key=lambda result: _FIRST.get(result.status, len(_FIRST))),
        skipped=SKIPPED,
        size=lambda one: (
            f"{one.size:.3g} {one.unit}" if one.unit != "voxels" else f"{one.voxels} voxels"
        ),
    )
    return text


def _csv(results: Sequence[JobResult]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*_COLUMNS, "message", "notes"])
    for result in results:
        end = [f"{result.seconds:.2f}", result.message, " ".join(result.notes)]
        start = [result.name, result.image, result.status]
        for one in result.objects:
            found = [one.id, one.name, one.voxels, f"{one.size:.6g}", one.unit]
            writer.writerow([*start, *found, *end])
        if not result.objects:
            writer.writerow([*start, *[""] * 5, *end])
    return text.getvalue()
