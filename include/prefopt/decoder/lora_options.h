// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "prefopt/export.h"
#include "prefopt/options.h"

namespace prefopt {

/// Modules by name, as PEFT's configs have them, in JSON: a list of names or ends of names, a text
/// with a pattern of Python's `re` that a whole name has to match, or null for none.
struct PREFOPT_API ModuleNames {
  ModuleNames() = default;
  ModuleNames(std::initializer_list<std::string> names);
  ModuleNames(const std::vector<std::string>& names);
  static ModuleNames matching(const std::string& pattern);

  std::string json = "null";
};

/// The biases that are trained with an adapter.
enum class LoraBias {
  kNone,
  kAll,       ///< of the whole model
  kLoraOnly,  ///< of the linear maps that have an adapter
};

/// A low-rank adapter (2106.09685): W + scale · B A with scale = alpha / rank, or alpha /
/// sqrt(rank) for rsLoRA (2312.03732). Names and meanings are those of PEFT's
/// `adapter_config.json`; modules have the names that they have in transformers. Texts of several
/// kinds are JSON.
struct LoraOptions {
  std::int64_t r = 16;
  double lora_alpha = 32;
  bool use_rslora = false;
  /// Of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, embed_tokens, lm_head; or
  /// "all-linear", all of these but the last two.
  ModuleNames target_modules = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                "gate_proj", "up_proj", "down_proj"};
  ModuleNames exclude_modules = {};  ///< of the targets
  /// A layer or a list of layers; other layers have no target that a list names by its end.
  std::string layers_to_transform = "null";
  std::string layers_pattern = "null";  ///< a name or a list: what layers are numbered in
  std::string rank_pattern = "{}";      ///< ranks by pattern; the first that matches counts
  std::string alpha_pattern = "{}";
  /// DoRA (2402.09353): each row of W + scale · B A is brought to a length that is trained, too.
  bool use_dora = false;
  bool lora_bias = false;  ///< B has a bias
  LoraBias bias = LoraBias::kNone;
  /// Ends of names: modules of which a copy is trained whole, in place of the model's.
  std::vector<std::string> modules_to_save = {};
  /// true: A uniform and B zero; "gaussian": A normal and B zero; false: both uniform.
  std::string init_lora_weights = "true";
  double lora_dropout = 0;

  PREFOPT_API void fields(FieldVisitor& v);
};

}  // namespace prefopt
