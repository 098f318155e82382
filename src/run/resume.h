// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "prefopt/policy/policy.h"
#include "run/run_folder.h"

namespace prefopt::detail {

/// The checkpoint that a run is resumed from.
struct ResumePoint {
  std::string checkpoint;
  bool is_in_place = false;  ///< in the run's own folder, whose files are continued
};

/// Returns whether `resume` names `folder` itself: "auto", the folder, or a checkpoint in it.
bool resumes_here(const std::string& resume, const RunFolder& folder);

/// Returns the point that `resume` names: "auto", the newest whole checkpoint of `folder`; a run
/// folder, the same there; or one checkpoint. A damaged one is passed over for the one before it,
/// which `note` is told. None: the run starts at its beginning, because `folder` has no checkpoint
/// yet. Throws ConfigError for a path that is neither, CheckpointError where none is whole.
std::optional<ResumePoint> find_resume_point(const std::string& resume, const RunFolder& folder,
                                             const Note& note);

/// Shape and weights of a model. Weights go in by their CRC-32: a start must not wait for the
/// gigabytes of a content_hash, which is to tell models of many runs apart.
std::string fingerprint_of(const Policy& policy);

/// Returns the keys `a.b` that have other values, in alphabetical order, each with a sentence,
/// "a.b: old -> new".
std::map<std::string, std::string> differences(const Json& before, const Json& now);

/// Returns the config with its options where this version has them; as it is where it has some that
/// this version does not know.
Json with_present_places(const Json& config);

/// Throws ConfigError with all that differs, "key: old -> new", if the run of `now` could not have
/// written the state of `before`. Both are {"version": …, "config": …, "contents": …, "ranks": …}:
/// a number that the first version did not have, all options, hashes of what the paths among them
/// hold, and the ranks that train together; none: 1.
/// Those that change no result may differ; a change of rounding, or of the samples of evaluations,
/// is noted. An option that `before` does not have yet, as it is of an earlier version, may have
/// its default: what that changes shows in the contents.
void check_same_run(const Json& before, const Json& now, const std::string& checkpoint,
                    const Note& note);

/// The same for a run that has written its config.json, which is `before`, and no checkpoint.
void check_same_config(const Json& before, const Json& now, const std::string& folder);

}  // namespace prefopt::detail
