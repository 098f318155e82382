// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/json.h"
#include "prefopt/data/batch.h"
#include "prefopt/model/policy.h"
#include "train/run_folder.h"

namespace prefopt::detail {

/// The checkpoint that a run goes on from.
struct ResumePoint {
  std::string checkpoint;
  bool is_in_place = false;  ///< in the run's own folder, whose files go on
};

/// What `resume` names: "auto", the newest whole checkpoint of `folder`; a run folder, the same
/// there; or one checkpoint. A damaged one is passed over for the one before it, which `note`
/// hears. None: the run starts at its beginning, because `folder` has no checkpoint yet. Throws
/// ConfigError for a path that is neither, CheckpointError where no checkpoint is whole.
std::optional<ResumePoint> find_resume_point(const std::string& resume, const RunFolder& folder,
                                             const Note& note);

/// Content of training or held-out rows, whatever file they are from.
std::string fingerprint_of(const std::vector<TokenPair>& pairs);
/// Shape and weights of a model. Weights go in by their CRC-32: a start must not wait for the
/// gigabytes of a content_hash, which is to tell models of many runs apart.
std::string fingerprint_of(const Policy& policy);

/// Throws ConfigError with all that differs, "key: old -> new", if the run of `now` could not have
/// written the state of `before`. Both are {"config": …, "contents": …}: all options, and hashes of
/// what the paths among them hold. What changes no result may differ; what changes rounding is
/// noted.
void check_same_run(const Json& before, const Json& now, const std::string& checkpoint,
                    const Note& note);

}  // namespace prefopt::detail
