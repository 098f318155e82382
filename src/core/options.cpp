// SPDX-License-Identifier: Apache-2.0
#include "prefopt/options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "core/json.h"
#include "core/text.h"
#include "prefopt/error.h"

namespace prefopt {
namespace {

using detail::Json;

std::string describe(Range range) {
  const bool low = std::isfinite(range.min);
  const bool high = std::isfinite(range.max);
  if (low && high) {
    return fmt::format("in {}{}, {}{}", range.min_open ? '(' : '[', range.min, range.max,
                       range.max_open ? ')' : ']');
  }
  if (low) return fmt::format("{} {}", range.min_open ? ">" : ">=", range.min);
  if (high) return fmt::format("{} {}", range.max_open ? "<" : "<=", range.max);
  return "finite";
}

std::string join(const std::vector<std::string_view>& names) {
  std::string text;
  for (auto name : names) text += fmt::format("{}'{}'", text.empty() ? "" : ", ", name);
  return text;
}

void check_range(std::string_view where, std::string_view name, double value, Range range) {
  if (!std::isfinite(value) || !range.contains(value)) {
    throw ConfigError(fmt::format("{}: expected {} {}, got {}{}{}", where, name, describe(range),
                                  value, range.reason.empty() ? "" : "; ", range.reason));
  }
}

// The name of an enumerator; a value that is none of them was cast from somewhere.
std::string_view name_at(std::string_view where, const Field& field, std::size_t value,
                         const std::vector<std::string_view>& names) {
  if (value >= names.size()) {
    throw ConfigError(fmt::format("{}: expected {} to be one of {}, got enumerator {}", where,
                                  field.name, join(names), value));
  }
  return names[value];
}

class Checker final : public FieldVisitor {
 public:
  explicit Checker(std::string_view where) : where_(where) {}

  void real(const Field& field, double& value, Range range) override {
    check_range(where_, field.name, value, range);
  }
  void integer(const Field& field, std::int64_t& value, Range range) override {
    check_range(where_, field.name, static_cast<double>(value), range);
  }
  void flag(const Field&, bool&) override {}
  void text(const Field&, std::string&) override {}
  void texts(const Field&, std::vector<std::string>&) override {}
  void index(const Field& field, std::size_t& value,
             const std::vector<std::string_view>& names) override {
    name_at(where_, field, value, names);
  }
  void json(const Field&, std::string&) override {}
  void begin_group(const Field& field) override {
    outer_.push_back(where_);
    where_ = fmt::format("{}.{}", where_, field.name);
  }
  void end_group() override {
    where_ = outer_.back();
    outer_.pop_back();
  }

 private:
  std::string where_;
  std::vector<std::string> outer_;
};

// A visitor to which options of all types are alike.
class OptionVisitor : public FieldVisitor {
 public:
  void real(const Field& field, double&, Range) final { option(field); }
  void integer(const Field& field, std::int64_t&, Range) final { option(field); }
  void flag(const Field& field, bool&) final { option(field); }
  void text(const Field& field, std::string&) final { option(field); }
  void texts(const Field& field, std::vector<std::string>&) final { option(field); }
  void index(const Field& field, std::size_t&, const std::vector<std::string_view>&) final {
    option(field);
  }
  void json(const Field& field, std::string&) final { option(field); }

 private:
  virtual void option(const Field& field) = 0;
};

// Groups that have an option of a name, from the top: "batch", "value.optimizer".
class PlacesOf final : public OptionVisitor {
 public:
  explicit PlacesOf(std::string_view name) : name_(name) {}

  void begin_group(const Field& field) override {
    option(field);
    outer_.push_back(group_);
    if (!group_.empty()) group_ += '.';
    group_ += field.name;
  }
  void end_group() override {
    group_ = outer_.back();
    outer_.pop_back();
  }

  std::vector<std::string> places;

 private:
  void option(const Field& field) override {
    const bool has_name =
        field.name == name_ ||
        std::find(field.aliases.begin(), field.aliases.end(), name_) != field.aliases.end();
    if (has_name) places.push_back(group_);
  }

  std::string_view name_;
  std::string group_;
  std::vector<std::string> outer_;
};

// Returns a guess at an unknown option: one of another group, or of another name.
std::string hint_for(const FieldList& fields, std::string_view key,
                     const std::vector<std::string_view>& known) {
  constexpr std::size_t kFew = 3;
  PlacesOf same(key);
  fields(same);
  const auto& places = same.places;
  if (places.empty() || places.size() > kFew) return detail::did_you_mean(key, known);
  std::string text;
  for (std::size_t i = 0; i < places.size(); ++i) {
    text += i == 0 ? "; it is an option of " : i + 1 == places.size() ? " and " : ", ";
    text += places[i].empty() ? "the top level" : fmt::format("'{}'", places[i]);
  }
  return text;
}

// Moves values from the former places of options, which are aliases with a dot (`train.steps`), to
// the present ones.
class Mover final : public OptionVisitor {
 public:
  Mover(Json& object, const FieldList& fields, std::string_view where)
      : object_(object), fields_(fields), where_(where) {}

  void begin_group(const Field& field) override { groups_.emplace_back(field.name); }
  void end_group() override {
    if (groups_.size() == 1) present_.push_back(groups_.front());
    groups_.pop_back();
  }

  /// After all fields: a former group that no option moved out of as a whole is a mistake.
  void finish() {
    for (const auto& [group, keys] : former_) {
      const auto found = object_.find(group);
      const bool is_present = std::find(present_.begin(), present_.end(), group) != present_.end();
      if (found == object_.end() || is_present) continue;
      if (!found->empty()) {
        const std::string key = found->begin().key();
        throw ConfigError(fmt::format(
            "{}.{}: expected a known option, got '{}'{}", where_, group, detail::shown_text(key),
            hint_for(fields_, key, std::vector<std::string_view>(keys.begin(), keys.end()))));
      }
      object_.erase(group);
    }
  }

  std::vector<std::string> moves;

 private:
  void option(const Field& field) override {
    for (std::string_view alias : field.aliases) {
      const auto dot = alias.find('.');
      if (dot != std::string_view::npos) move(field, alias.substr(0, dot), alias.substr(dot + 1));
    }
  }

  void move(const Field& field, std::string_view group, std::string_view key) {
    former_[std::string(group)].emplace_back(key);
    const auto found = object_.find(std::string(group));
    if (found == object_.end()) return;
    require_object(group, *found);
    const auto value = found->find(std::string(key));
    if (value == found->end()) return;
    const Json moved = std::move(*value);
    found->erase(value);

    Json* place = &object_;
    std::string path;
    for (const std::string& name : groups_) {
      place = &(*place)[name];
      if (place->is_null()) *place = Json::object();
      require_object(name, *place);
      path += name + ".";
    }
    const auto refuse_twice = [&](std::string_view name) {
      if (!place->contains(std::string(name))) return;
      throw ConfigError(fmt::format("{}: expected {}{} once, got it as '{}{}' and as '{}.{}'",
                                    where_, path, field.name, path, name, group, key));
    };
    refuse_twice(field.name);
    for (std::string_view alias : field.aliases) refuse_twice(alias);
    (*place)[std::string(field.name)] = moved;
    moves.push_back(fmt::format("{}.{} is now {}{}", group, key, path, field.name));
  }

  void require_object(std::string_view name, const Json& value) const {
    if (value.is_object()) return;
    throw ConfigError(fmt::format("{}: expected {} to be an object, got {}", where_, name,
                                  detail::shown_json(value)));
  }

  Json& object_;
  const FieldList& fields_;
  std::string where_;
  std::vector<std::string> groups_;
  std::vector<std::string> present_;
  std::map<std::string, std::vector<std::string>> former_;
};

class Reader final : public FieldVisitor {
 public:
  Reader(const Json& object, const FieldList& fields, std::string_view where) : fields_(fields) {
    levels_.push_back({&object, std::string(where), {}});
  }

  void real(const Field& field, double& value, Range range) override {
    if (const Json* found = find(field)) {
      if (!found->is_number()) wrong_type(field, "a number", *found);
      value = found->get<double>();
    }
    check_range(level().where, field.name, value, range);
  }
  void integer(const Field& field, std::int64_t& value, Range range) override {
    if (const Json* found = find(field)) {
      const bool whole = found->is_number_integer() ||
                         (found->is_number_float() && std::trunc(found->get<double>()) == *found &&
                          std::abs(found->get<double>()) < 9e15);
      if (!whole) wrong_type(field, "a whole number", *found);
      // Unsigned values beyond int64 would wrap around.
      if (found->is_number_unsigned() && found->get<std::uint64_t>() > INT64_MAX) {
        wrong_type(field, "a number of at most 64 bits", *found);
      }
      value = found->get<std::int64_t>();
    }
    check_range(level().where, field.name, static_cast<double>(value), range);
  }
  void flag(const Field& field, bool& value) override {
    if (const Json* found = find(field)) {
      if (!found->is_boolean()) wrong_type(field, "true or false", *found);
      value = found->get<bool>();
    }
  }
  void text(const Field& field, std::string& value) override {
    if (const Json* found = find(field)) {
      if (!found->is_string()) wrong_type(field, "text", *found);
      value = found->get<std::string>();
    }
  }
  void texts(const Field& field, std::vector<std::string>& value) override {
    if (const Json* found = find(field)) {
      const auto is_text = [](const Json& item) { return item.is_string(); };
      if (!found->is_array() || !std::all_of(found->begin(), found->end(), is_text)) {
        wrong_type(field, "a list of texts", *found);
      }
      value = found->get<std::vector<std::string>>();
    }
  }
  void text_or_list(const Field& field, std::string& value) override {
    const Json* found = find(field);
    if (!found) return;
    if (!found->is_string() && !found->is_array()) wrong_type(field, "text or a list", *found);
    value = found->is_string() ? found->get<std::string>() : detail::dump_json(*found);
  }
  void index(const Field& field, std::size_t& value,
             const std::vector<std::string_view>& names) override {
    const Json* found = find(field);
    if (!found) return;
    if (!found->is_string()) wrong_type(field, "one of " + join(names), *found);
    const auto given = found->get<std::string>();
    const auto at = std::find(names.begin(), names.end(), given);
    if (at == names.end()) {
      throw ConfigError(fmt::format("{}: expected {} to be one of {}, got '{}'{}", level().where,
                                    field.name, join(names), detail::shown_text(given),
                                    detail::did_you_mean(given, names)));
    }
    value = static_cast<std::size_t>(at - names.begin());
  }
  void json(const Field& field, std::string& value) override {
    if (const Json* found = find(field)) value = detail::dump_json(*found);
  }
  void begin_group(const Field& field) override {
    static const Json kEmpty = Json::object();
    const Json* found = find(field);
    if (found && !found->is_object()) wrong_type(field, "an object", *found);
    levels_.push_back(
        {found ? found : &kEmpty, fmt::format("{}.{}", level().where, field.name), {}});
  }
  void end_group() override {
    check_unknown();
    levels_.pop_back();
  }

  /// After all fields: whatever is left over is a mistake.
  void check_unknown() const {
    for (const auto& item : level().object->items()) {
      const auto& known = level().known;
      if (std::find(known.begin(), known.end(), item.key()) == known.end()) {
        throw ConfigError(fmt::format("{}: expected a known option, got '{}'{}", level().where,
                                      detail::shown_text(item.key()),
                                      hint_for(fields_, item.key(), known)));
      }
    }
  }

 private:
  struct Level {
    const Json* object;
    std::string where;
    std::vector<std::string_view> known;
  };

  Level& level() { return levels_.back(); }
  const Level& level() const { return levels_.back(); }

  const Json* find(const Field& field) {
    std::vector<std::string_view> names{field.name};
    for (std::string_view alias : field.aliases) {
      if (alias.find('.') == std::string_view::npos) names.push_back(alias);
    }
    const Json* found = nullptr;
    std::string_view found_as;
    for (std::string_view name : names) {
      level().known.push_back(name);
      const auto at = level().object->find(std::string(name));
      if (at == level().object->end()) continue;
      if (found) {
        throw ConfigError(fmt::format("{}: expected {} once, got it as '{}' and as '{}'",
                                      level().where, field.name, found_as, name));
      }
      found = &*at;
      found_as = name;
    }
    return found;
  }

  [[noreturn]] void wrong_type(const Field& field, std::string_view expected, const Json& got) {
    throw ConfigError(fmt::format("{}: expected {} to be {}, got {}", level().where, field.name,
                                  expected, detail::shown_json(got)));
  }

  const FieldList& fields_;
  std::vector<Level> levels_;
};

class Writer final : public FieldVisitor {
 public:
  bool writes() const override { return true; }
  void real(const Field& field, double& value, Range) override { put(field, value); }
  void integer(const Field& field, std::int64_t& value, Range) override { put(field, value); }
  void flag(const Field& field, bool& value) override { put(field, value); }
  void text(const Field& field, std::string& value) override { put(field, value); }
  void texts(const Field& field, std::vector<std::string>& value) override { put(field, value); }
  void text_or_list(const Field& field, std::string& value) override {
    const Json list = Json::parse(value, nullptr, /*allow_exceptions=*/false);
    if (list.is_array()) {
      put(field, list);
    } else {
      put(field, value);
    }
  }
  void index(const Field& field, std::size_t& value,
             const std::vector<std::string_view>& names) override {
    put(field, std::string(name_at("options", field, value, names)));
  }
  void json(const Field& field, std::string& value) override {
    put(field, detail::parse_json<ConfigError>(value, field.name));
  }
  void begin_group(const Field& field) override {
    levels_.emplace_back(std::string(field.name), Json::object());
  }
  void end_group() override {
    auto [name, object] = std::move(levels_.back());
    levels_.pop_back();
    levels_.back().second[name] = std::move(object);
  }

  const Json& result() const { return levels_.front().second; }

 private:
  template <class T>
  void put(const Field& field, const T& value) {
    levels_.back().second[std::string(field.name)] = value;
  }

  std::vector<std::pair<std::string, Json>> levels_{{"", Json::object()}};
};

class Describer final : public FieldVisitor {
 public:
  void real(const Field& field, double& value, Range range) override {
    add(field, "number", fmt::format("{}", value), describe(range));
  }
  void integer(const Field& field, std::int64_t& value, Range range) override {
    add(field, "integer", fmt::format("{}", value), describe(range));
  }
  void flag(const Field& field, bool& value) override {
    add(field, "flag", value ? "true" : "false", "true, false");
  }
  void text(const Field& field, std::string& value) override {
    add(field, "text", fmt::format("\"{}\"", value), "");
  }
  void texts(const Field& field, std::vector<std::string>&) override {
    add(field, "list of texts", "[]", "");
  }
  void text_or_list(const Field& field, std::string& value) override {
    add(field, "text or list", fmt::format("\"{}\"", value), "");
  }
  void index(const Field& field, std::size_t& value,
             const std::vector<std::string_view>& names) override {
    add(field, "choice", std::string(name_at("options", field, value, names)), join(names));
  }
  void json(const Field& field, std::string& value) override { add(field, "JSON", value, ""); }
  void begin_group(const Field& field) override { prefix_.push_back(std::string(field.name)); }
  void end_group() override { prefix_.pop_back(); }

  std::vector<FieldDoc> rows;

 private:
  void add(const Field& field, std::string type, std::string value, std::string range) {
    std::string name;
    for (const auto& group : prefix_) name += group + ".";
    rows.push_back({.name = name + std::string(field.name),
                    .type = std::move(type),
                    .default_value = std::move(value),
                    .range = std::move(range),
                    .doc = std::string(field.doc),
                    .aliases = {field.aliases.begin(), field.aliases.end()}});
  }

  std::vector<std::string> prefix_;
};

Json parse_object(std::string_view json, std::string_view where) {
  Json object = detail::parse_json<ConfigError>(json, where);
  if (object.is_object()) return object;
  throw ConfigError(
      fmt::format("{}: expected an object of options, got {}", where, detail::shown_json(object)));
}

}  // namespace

std::string move_former_fields(const FieldList& fields, std::string_view json,
                               std::string_view where, std::vector<std::string>* moves) {
  Json object = parse_object(json, where);
  Mover mover(object, fields, where);
  fields(mover);
  mover.finish();
  if (moves != nullptr) *moves = std::move(mover.moves);
  return detail::dump_json(object);
}

void read_fields(const FieldList& fields, std::string_view json, std::string_view where) {
  Json object = parse_object(json, where);
  Mover mover(object, fields, where);
  fields(mover);
  mover.finish();
  Reader reader(object, fields, where);
  fields(reader);
  reader.check_unknown();
}

void check_fields(const FieldList& fields, std::string_view where) {
  Checker checker(where);
  fields(checker);
}

std::string write_fields(const FieldList& fields, int indent) {
  Writer writer;
  fields(writer);
  return detail::dump_json(writer.result(), indent);
}

std::vector<FieldDoc> describe_fields(const FieldList& fields) {
  Describer describer;
  fields(describer);
  return std::move(describer.rows);
}

}  // namespace prefopt
