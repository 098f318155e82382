// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string_view>

namespace prefopt::detail {

/// Of report.html. Colours come in two sets; on paper it is always the light one.
inline constexpr std::string_view kReportStyle = R"(
:root {
  color-scheme: light dark;
  --page: #ffffff; --ink: #1b1f24; --quiet: #59636e; --line: #d6dce2; --box: #f5f7f9;
  --good: #187a3a; --bad: #b42318; --open: #8a6100; --link: #1257b8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161b; --ink: #e4e9ee; --quiet: #99a4b0; --line: #333c46; --box: #1a2027;
    --good: #57c27a; --bad: #ff8a7d; --open: #e0b04a; --link: #7db4ff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 62rem; padding: 1.25rem 1rem 3rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 {
  font-size: 1.2rem; margin: 2.25rem 0 .75rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); break-after: avoid;
}
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; break-after: avoid; }
p { margin: .5rem 0; }
a { color: var(--link); }
.quiet, figcaption { color: var(--quiet); font-size: .875rem; }
.verdict {
  margin: 1rem 0; padding: .75rem 1rem; background: var(--box); border-left: .3rem solid var(--open);
  font-size: 1.0625rem;
}
.verdict.better { border-color: var(--good); }
.verdict.worse { border-color: var(--bad); }
.verdict.unknown { border-color: var(--quiet); }
.warnings { margin: .5rem 0; padding: 0; list-style: none; }
.warnings li { margin: .4rem 0; padding-left: 1.6rem; text-indent: -1.6rem; }
.warnings li::before { content: "⚠"; display: inline-block; width: 1.6rem; text-indent: 0; color: var(--open); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.card { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .75rem; break-inside: avoid; }
.card b { display: block; font-size: 1.35rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-size: .9375rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); }
tr { break-inside: avoid; }
table.facts th { width: 9rem; font-weight: 600; }
table.change td.number, table.change th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
table.change th { font-weight: 600; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem 1.5rem; }
figure { margin: 0; break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; }
.sample { margin: 1rem 0 1.75rem; }
.text {
  white-space: pre-wrap; unicode-bidi: isolate; margin: 0; font-size: .9375rem;
}
.prompt { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .75rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin-top: .6rem; }
.pair > div { border-left: .2rem solid var(--line); padding-left: .75rem; min-width: 0; }
.pair > div.policy { border-color: var(--link); }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .875em; }
pre {
  white-space: pre-wrap; background: var(--box); border: 1px solid var(--line); border-radius: .4rem;
  padding: .6rem .75rem; margin: .5rem 0;
}
@media (max-width: 40rem) {
  .pair { grid-template-columns: 1fr; }
  table.facts th { width: 6.5rem; }
  table.change .what { display: none; }
}
@media print {
  :root {
    color-scheme: light;
    --page: #ffffff; --ink: #000000; --quiet: #444444; --line: #bbbbbb; --box: #ffffff;
    --good: #187a3a; --bad: #b42318; --open: #8a6100; --link: #000000;
  }
  html { font-size: 11px; }
  body { max-width: none; padding: 0; }
  h2 { margin-top: 1.5rem; }
  .charts { grid-template-columns: 1fr 1fr; gap: .75rem 1.5rem; }
  .cards { grid-template-columns: repeat(5, 1fr); }
  .prompt { break-after: avoid; }
  @page { margin: 14mm; }
}
)";

}  // namespace prefopt::detail
