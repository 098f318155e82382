// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "prefopt/export.h"

namespace prefopt {

/// The page about the run in `run_dir`: what was trained on what, whether it worked, with charts
/// and samples, and how to repeat it. One HTML file without scripts or anything from elsewhere, for
/// screens of any width, light or dark, and for paper.
///
/// A function of the folder alone: equal folders give equal pages. Files that are missing and lines
/// that are damaged are named in the page. Throws CheckpointError where the folder holds neither
/// config.json nor metrics.jsonl.
PREFOPT_API std::string report_html(const std::string& run_dir);

/// Writes it to `run_dir`/report.html, whose path it gives. Throws CheckpointError where that
/// cannot be written, too. `run_training` does this at its end and after evaluations.
PREFOPT_API std::string write_report(const std::string& run_dir);

}  // namespace prefopt
