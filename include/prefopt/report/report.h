// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "prefopt/export.h"

namespace prefopt {

/// Returns the page about the run in `run_dir`: what was trained on what, whether it worked, with
/// charts and samples, and how to repeat it. One HTML file without scripts or anything from
/// elsewhere, for screens of any width, light or dark, and for paper.
///
/// A function of the folder alone: equal folders give equal pages. The page names missing files
/// and damaged lines. Throws CheckpointError if the folder holds neither config.json nor
/// metrics.jsonl.
PREFOPT_API std::string report_html(const std::string& run_dir);

/// Writes it to `run_dir`/report.html and returns that path. Also throws CheckpointError if it
/// cannot be written. `run_training` does this at its end and after evaluations.
PREFOPT_API std::string write_report(const std::string& run_dir);

}  // namespace prefopt
