// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>
#include <span>
#include <string_view>
#include <utility>

#include "core/file.h"
#include "core/json.h"
#include "core/text.h"
#include "prefopt/data/dataset.h"
#include "prefopt/error.h"
#include "prefopt/online/step_tree.h"

namespace prefopt {
namespace {

using detail::Json;

constexpr std::array<std::string_view, 7> kTreeKeys = {
    "prompt", "prompt_ids", "number", "search", "iterations", "drawn_tokens", "nodes"};
constexpr std::array<std::string_view, 10> kNodeKeys = {
    "parent", "ids", "logps", "end", "ended", "visits", "value", "reward", "prior", "text"};

Json node_json(const StepNode& node) {
  Json json = {{"parent", node.parent}};
  if (node.parent >= 0) {
    json["ids"] = node.tokens;
    json["text"] = node.text;
    json["logps"] = node.token_logps;
    json["prior"] = node.prior;
    json["end"] = node.is_end;
    json["ended"] = node.ended;
  }
  json["visits"] = node.visits;
  json["value"] = node.value;
  // JSON has no NaN, it is written as null.
  if (!node.is_end || node.is_rated) json["reward"] = node.reward;
  return json;
}

/// Reads the keys of an object of a line.
class TreeObject {
 public:
  TreeObject(const Json& object, std::string where, std::span<const std::string_view> keys,
             std::string_view kind)
      : object_(object), where_(std::move(where)) {
    if (!object.is_object()) refuse(fmt::format("a {}, an object", kind), object);
    for (const auto& [key, value] : object.items()) {
      if (detail::contains(keys, key)) continue;
      throw DataError(fmt::format("{}: expected keys of a {}, got '{}'{}", where_, kind,
                                  detail::shown_text(key),
                                  detail::did_you_mean(key, {keys.begin(), keys.end()})));
    }
  }

  const Json& at(std::string_view key) const {
    const auto found = object_.find(std::string(key));
    if (found == object_.end()) {
      throw DataError(fmt::format("{}: expected a key '{}', got none", where_, key));
    }
    return *found;
  }
  bool has(std::string_view key) const { return object_.contains(std::string(key)); }
  std::int64_t integer(std::string_view key, std::int64_t least = 0) const {
    const Json& value = at(key);
    const bool fits = value.is_number_integer() && value >= least &&
                      value <= std::numeric_limits<std::int64_t>::max();
    if (!fits) refuse(fmt::format("{} to be an integer of at least {}", key, least), value);
    return value.get<std::int64_t>();
  }
  double number(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_number()) refuse(fmt::format("{} to be a number", key), value);
    return value.get<double>();
  }
  bool flag(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_boolean()) refuse(fmt::format("{} to be true or false", key), value);
    return value.get<bool>();
  }
  std::string text(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_string()) refuse(fmt::format("{} to be a text", key), value);
    return value.get<std::string>();
  }
  const Json& list(std::string_view key) const {
    const Json& value = at(key);
    if (!value.is_array()) refuse(fmt::format("a list in {}", key), value);
    return value;
  }
  std::vector<std::int64_t> ids(std::string_view key) const {
    std::vector<std::int64_t> values;
    for (const Json& value : list(key)) {
      const bool is_id = value.is_number_integer() && value >= 0 &&
                         value <= std::numeric_limits<std::int64_t>::max();
      if (!is_id) refuse(fmt::format("token ids in {}", key), value);
      values.push_back(value.get<std::int64_t>());
    }
    return values;
  }
  std::vector<double> numbers(std::string_view key) const {
    std::vector<double> values;
    for (const Json& value : list(key)) {
      if (!value.is_number()) refuse(fmt::format("numbers in {}", key), value);
      values.push_back(value.get<double>());
    }
    return values;
  }
  const std::string& where() const { return where_; }

 private:
  [[noreturn]] void refuse(std::string_view expected, const Json& got) const {
    throw DataError(
        fmt::format("{}: expected {}, got {}", where_, expected, detail::shown_json(got)));
  }

  const Json& object_;
  std::string where_;
};

StepNode read_node(const Json& json, const std::string& where, bool is_prompt) {
  const TreeObject object(json, where, kNodeKeys, "node");
  StepNode node{.parent = object.integer("parent", -1)};
  node.visits = object.integer("visits");
  node.value = object.number("value");
  if (!is_prompt) {
    node.tokens = object.ids("ids");
    node.text = object.text("text");
    node.token_logps = object.numbers("logps");
    if (node.token_logps.size() != node.tokens.size()) {
      throw DataError(fmt::format("{}: expected logps of the {} tokens of ids, got {}", where,
                                  node.tokens.size(), node.token_logps.size()));
    }
    node.prior = object.number("prior");
    node.is_end = object.flag("end");
    node.ended = object.flag("ended");
  }
  if (object.has("reward")) {
    const bool is_null = object.at("reward").is_null();
    node.reward = is_null ? std::nan("") : object.number("reward");
    node.is_rated = node.is_end;
  }
  return node;
}

StepTree read_tree(std::string_view line, const std::string& where) {
  const Json json = detail::parse_json<DataError>(line, where);
  const TreeObject object(json, where, kTreeKeys, "tree");
  std::vector<StepNode> nodes;
  for (const Json& node : object.list("nodes")) {
    nodes.push_back(
        read_node(node, fmt::format("{}: node {}", where, nodes.size()), nodes.empty()));
  }
  StepTree tree = StepTree::of_nodes(object.ids("prompt_ids"), object.text("prompt"),
                                     object.integer("number"), std::move(nodes), where);
  tree.set_search(object.text("search"));
  tree.set_progress(object.integer("iterations"), object.integer("drawn_tokens"));
  return tree;
}

}  // namespace

void save_trees(const std::vector<StepTree>& trees, const std::string& path) {
  std::string text;
  for (const StepTree& tree : trees) {
    Json nodes = Json::array();
    for (const StepNode& node : tree.nodes()) nodes.push_back(node_json(node));
    const Json line = {{"prompt", tree.prompt_text()},    {"prompt_ids", tree.prompt()},
                       {"number", tree.number()},         {"search", tree.search()},
                       {"iterations", tree.iterations()}, {"drawn_tokens", tree.drawn_tokens()},
                       {"nodes", std::move(nodes)}};
    text += detail::dump_json(line) + "\n";
  }
  detail::write_file<DataError>(path, text);
}

std::vector<StepTree> load_trees(const std::string& path) {
  std::vector<StepTree> trees;
  for_each_line(path, [&](std::int64_t number, std::string_view text) {
    trees.push_back(read_tree(text, fmt::format("{}:{}", path, number)));
  });
  if (trees.empty()) throw DataError(fmt::format("{}: expected at least one tree, got none", path));
  return trees;
}

}  // namespace prefopt
