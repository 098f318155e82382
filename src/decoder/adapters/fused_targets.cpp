// SPDX-License-Identifier: Apache-2.0
#include "decoder/adapters/fused_targets.h"

#include <algorithm>
#include <array>
#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt::detail {

LoraOptions named_as_in(const Network& network, LoraOptions options) {
  const Json given = parse_json<ConfigError>(options.target_modules.json, "lora.target_modules");
  const auto is_text = [](const Json& item) { return item.is_string(); };
  if (!given.is_array() || !std::all_of(given.begin(), given.end(), is_text)) return options;
  auto targets = given.get<std::vector<std::string>>();
  std::set<std::string, std::less<>> present;
  bool has_experts = false;
  Network handles = network;
  for (std::size_t i = 0; i < handles.layers.size(); ++i) {
    handles.for_each_linear(i, [&](const LinearPlace& place, Linear&) {
      present.emplace(place.name.substr(place.name.rfind('.') + 1));
    });
    has_experts = has_experts || handles.spec.layers[i].experts.count > 0;
  }
  const auto fuse = [&](std::initializer_list<std::string_view> parts, const char* whole) {
    const auto is_target = [&](std::string_view part) { return contains(targets, part); };
    if (!present.contains(whole) || !std::all_of(parts.begin(), parts.end(), is_target)) return;
    std::erase_if(targets, [&](const std::string& target) {
      return std::find(parts.begin(), parts.end(), target) != parts.end();
    });
    if (!contains(targets, whole)) targets.emplace_back(whole);
  };
  fuse({"q_proj", "k_proj", "v_proj"}, "qkv_proj");
  fuse({"gate_proj", "up_proj"}, "gate_up_proj");
  const bool is_default = options.target_modules.json == LoraOptions().target_modules.json;
  std::erase_if(targets, [&](const std::string& target) {
    constexpr std::array kOfExperts =
        std::to_array<std::string_view>({"gate_proj", "up_proj", "down_proj"});
    return is_default && has_experts && !present.contains(target) && contains(kOfExperts, target);
  });
  options.target_modules = targets;
  return options;
}

}  // namespace prefopt::detail
