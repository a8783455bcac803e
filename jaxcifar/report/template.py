"""Hold the HTML around a report: $subtitle and $body are filled in, and nothing is loaded from elsewhere."""

from string import Template

TEMPLATE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Training report</title>
<style>
:root { color-scheme: light dark; --page: #fff; --ink: #24292f; --soft: #59636e;
  --line: #d8dee4; --shade: #f6f8fa; --bad: #b3261e; --wait: #8a5a00; --link: #0063a0 }
@media screen and (prefers-color-scheme: dark) {
  :root { --page: #161b22; --ink: #d1d7e0; --soft: #9aa4b0; --line: #30363d; --shade: #1f262e;
    --bad: #ff8a80; --wait: #e3b341; --link: #79bfff }
}
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 92rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
h1 { margin: 0; font-size: 1.7rem } h2 { margin: 2.8rem 0 .8rem; font-size: 1.25rem }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem } h1 + p { margin: .2rem 0 1.6rem }
h1 + p, .notes { color: var(--soft) } .notes { padding-left: 1.2rem; font-size: .85rem }
h2, td, th { overflow-wrap: break-word } a { color: var(--link); text-decoration: none }
.scroll { overflow-x: auto } img { width: 100%; height: auto }
table { border-collapse: collapse; font-size: clamp(.7rem, .94vw, .82rem);
  font-variant-numeric: tabular-nums }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top }
thead th { background: var(--shade); border-bottom-width: 2px; vertical-align: bottom }
tbody th { min-width: 8rem; font-weight: 600 } tbody tr:hover { background: var(--shade) }
.n { text-align: right } .bad { color: var(--bad) } .wait { color: var(--wait) }
section { border-top: 1px solid var(--line); margin-top: 2.8rem } section h2 { margin-top: 1.2rem }
@media print { @page { size: A4 landscape; margin: 12mm } body { padding: 0; max-width: none }
  table { font-size: .62rem } th, td { padding: .2rem .35rem }
  section, picture, tr { break-inside: avoid } }
</style>
</head>
<body>
<h1>Training report</h1>
<p>$subtitle</p>
$body
</body>
</html>
""")
