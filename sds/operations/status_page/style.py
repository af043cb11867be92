"""Gives the page's style sheet: light or dark by the reader's own setting.

Invariant: text has a contrast of at least 4.5 to its background in both; nothing is loaded.
"""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{--page:#f6f7f9;--card:#fff;--text:#1c2330;--quiet:#5a6475;--line:#e2e6ec;
--good:#0f7a3d;--good-back:#dff5e7;--late:#8a5300;--late-back:#fdefd2;--bad:#b3201d;
--bad-back:#fde3e1;--waiting:#4a5568;--waiting-back:#e8ebf0;--track:#e4e8ee}
@media (prefers-color-scheme:dark){:root{--page:#12161d;--card:#1a202a;--text:#e6eaf0;
--quiet:#9aa6b8;--line:#2a323f;--good:#6ee7a0;--good-back:#12351f;--late:#fbc766;
--late-back:#3a2a0a;--bad:#ff9a94;--bad-back:#43191a;--waiting:#b6c1d1;--waiting-back:#2a323f;
--track:#2a323f}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
header,main{max-width:1180px;margin:0 auto;padding:0 20px}
header{display:flex;flex-wrap:wrap;align-items:center;gap:4px 14px;padding-top:22px}
h1{font-size:20px;margin:0;font-weight:650}h1 .domain{font-weight:400;color:var(--quiet)}
h2{font-size:15px;margin:0 0 10px;font-weight:650}
header p{margin:0}header .quiet{flex-basis:100%}
.quiet{color:var(--quiet);font-size:13px}
.chip{display:inline-block;padding:1px 9px;border-radius:99px;font-size:12.5px;font-weight:600;
white-space:nowrap}
.chip.good{color:var(--good);background:var(--good-back)}
.chip.late{color:var(--late);background:var(--late-back)}
.chip.bad{color:var(--bad);background:var(--bad-back)}
.chip.waiting{color:var(--waiting);background:var(--waiting-back)}
.notice{background:var(--late-back);color:var(--late);border-radius:8px;padding:9px 14px;
margin:16px 0 0;font-weight:550}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:16px 18px;
margin:16px 0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;padding:0;
background:none;border:0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.tile b{display:block;font-size:24px;font-weight:650;line-height:1.2}
.tile span{color:var(--quiet);font-size:13px}
section{overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th{text-align:left;color:var(--quiet);font-weight:550;font-size:12.5px;padding:0 14px 6px 0}
td{padding:7px 14px 7px 0;border-top:1px solid var(--line);vertical-align:top}
.name{overflow-wrap:anywhere}.number{white-space:nowrap;font-variant-numeric:tabular-nums}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,monospace;white-space:nowrap}
small{color:var(--quiet);font-size:12.5px}.words,small.words{color:var(--bad)}
.bar{display:block;width:170px;height:9px;margin-top:6px}
.bar .track{fill:var(--track)}.bar .left{fill:var(--good)}
.bar.late .left{fill:var(--late)}.bar.bad .left{fill:var(--bad)}
@media (max-width:720px){header,main{padding:0 12px}section{padding:12px}thead{display:none}
table,tbody,tr,td{display:block;width:100%}tr{border-top:1px solid var(--line);padding:6px 0}
td{border:0;padding:2px 0;white-space:normal}td:empty{display:none}
td[data-label]:not([data-label=""])::before{content:attr(data-label) ": ";color:var(--quiet)}
code{white-space:normal}.bar{width:100%}}
"""
