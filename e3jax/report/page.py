"""What all pages share: their style, their tables and figures, and a frame that loads nothing from the network.

text = page("a run", "<h1>a run</h1>", "<section>…</section>")
"""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Collection
from html import escape
from typing import Any

from e3jax.printable import printable
from e3jax.report import figures

SAMPLES_PAGE = "samples.html"  # the file that report/browser.py writes and the report links

# Colours: --s0 grey, --s1 blue, --s2 vermillion (figures.COLOURS).
CSS = """
:root{--ink:#1c2129;--soft:#5b6472;--page:#f7f7f5;--card:#fff;--rule:#dfe1e5;--mark:#0072b21c;
--text:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;--code:ui-monospace,Menlo,monospace}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#9aa3b0;--page:#14171c;--card:#1d2128;
--rule:#333943;--mark:#58aef02e}}
*{box-sizing:border-box} body{margin:0 auto;max-width:1080px;padding:2.5rem 1.25rem 5rem;
background:var(--page);color:var(--ink);font:16px/1.5 var(--text);font-variant-numeric:tabular-nums}
h1{font-size:2rem;margin:0 0 .4rem;overflow-wrap:anywhere} h3{font-size:1rem;margin:1.8rem 0 .2rem}
h2{font-size:1.3rem;margin:3rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--rule)}
h4{font:600 .9rem/1.4 var(--code);margin:0;overflow-wrap:anywhere} .rule{font-size:1.15rem;margin:0}
.stages,.key,.none,.note,.facts,small,summary{color:var(--soft);font-size:.86rem}
.note{border-left:3px solid var(--s2);padding-left:.7rem} .facts{margin:.15rem 0 .5rem}
.lead{font-size:1.05rem;max-width:46em;margin:.2rem 0 .9rem} .key{max-width:60em;margin:.5rem 0}
.scroll{overflow-x:auto} table{border-collapse:collapse;background:var(--card);border-radius:8px}
th,td{padding:.5rem .8rem;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;
font-weight:400} tr>:first-child{text-align:left} tbody th{font-weight:600}
thead th{font-size:.86rem;color:var(--soft);vertical-align:bottom} tbody tr:last-child>*{border:0}
.values td,.values th{white-space:normal;text-align:left;overflow-wrap:anywhere;min-width:6.5em;
font:.8rem/1.4 var(--code)}
th small,td small{display:block;font-size:.76rem;font-weight:400}
tr.mark>*{background:var(--mark);font-weight:600} sup{font-size:.8em;line-height:0;color:var(--s1)}
@media(max-width:600px){body{padding:1.2rem .8rem 3rem} th,td{padding:.4rem .45rem}
tr>:first-child{position:sticky;left:0;background:var(--card)}}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:1rem}
figure{margin:0;padding:.8rem;background:var(--card);border:1px solid var(--rule);max-width:540px;
border-radius:10px;display:flex;flex-direction:column;justify-content:space-between}
svg{width:100%;height:auto} svg text{font-family:var(--text)!important}
figcaption{font-size:.86rem} figcaption span{margin-right:.9rem;color:var(--soft)}
span,i{display:inline-block} figcaption i{width:1.1em;border-top:3px solid var(--c);
margin-right:.35em;vertical-align:.25em} figcaption i.dash{border-top:2px dashed var(--c)}
article{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--s0);
border-radius:8px;padding:.8rem 1rem;margin:.8rem 0} article.solved{border-left-color:var(--s1)}
.key+.grid{margin-top:.9rem} .right{--c:var(--s1)} .wrong{--c:var(--s2)} .open{--c:var(--s0)}
.chips{list-style:none;margin:0;padding:0;display:flex;flex-wrap:wrap;gap:.3rem}
.chip{font:.8rem/1.4 var(--code);padding:.12rem .5rem;border-radius:5px;border:1px solid var(--c);
background:color-mix(in srgb,var(--c) 14%,transparent);overflow-wrap:anywhere}
pre{font:.8rem/1.5 var(--code);white-space:pre-wrap;overflow-wrap:anywhere;margin:.5rem 0;
max-height:30rem;overflow:auto} pre:empty{display:none} summary{cursor:pointer;margin-top:.4rem}
a{color:var(--s1)} button{font:inherit;font-size:.86rem;color:inherit;background:var(--card);
border:1px solid var(--rule);border-radius:6px;padding:.15rem .7rem;margin-top:.4rem;cursor:pointer}
.swatch{width:.8em;height:.8em;border-radius:3px;background:var(--c);margin-right:.45em}
"""


def escaped(value: Any) -> str:
    """Return any value as text for a page: without tags, and without characters that turn the direction of text."""
    return escape(printable(value, lines=True))


def page(title: str, header: str, body: str, script: str = "") -> str:
    """Return a whole page; `header` and `body` are HTML, `title` is text."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='color-scheme' "
        "content='light dark'><meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escaped(title)}</title><style>{figures.palette_css()}{CSS}</style></head><body><header>"
        f"{header}</header><main>{body}</main>{script}</body></html>\n"
    )


def filled(name: str, *, title: str, data: Any, connect: str = "'none'") -> str:
    """Return the template `name` beside this file with its title, the shared style, and `data` as JSON.

    The page's policy allows its own script and style alone, by their hashes, and to ask `connect` for more data.
    """
    template = (importlib.resources.files("e3jax.report") / name).read_text(encoding="utf-8")
    template = template.replace("{{style}}", figures.palette_css() + CSS)
    policy = f"default-src 'none'; base-uri 'none'; form-action 'none'; connect-src {connect}"
    for tag in ("script", "style"):
        source = template.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        policy += f"; {tag}-src 'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no tag can end the script
    return template.replace("{{policy}}", policy).replace("{{title}}", escaped(title)).replace("{{data}}", text)


def table_html(head: list[str], rows: list[list[str]], marked: Collection[int] = ()) -> str:
    """Return a table of cells that are already HTML, with the rows in `marked` highlighted."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = ""
    for i, (name, *cells) in enumerate(rows):
        mark = " class='mark'" if i in marked else ""
        body += f"<tr{mark}><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class='scroll'>{table}</div>"


def figure_html(title: str, legend: list[tuple[str, int, bool]], svg: str) -> str:
    """Return a figure with its legend, a (label, colour, dashed) for each line."""
    keys = ""
    for label, colour, dashed in legend:
        dash = "dash" if dashed else "solid"
        keys += f"<span><i class='{dash}' style='--c:var(--s{colour})'></i>{escaped(label)}</span>"
    return f"<figure><figcaption><b>{escaped(title)}</b><div>{keys}</div></figcaption>{svg}</figure>"
