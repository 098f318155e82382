// SPDX-License-Identifier: Apache-2.0
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <optional>
#include <string>

#include "jinja/arguments.h"
#include "jinja/budget.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/filter_parts.h"
#include "jinja/methods.h"
#include "jinja/operators.h"
#include "jinja/text_functions.h"

namespace prefopt::jinja {
namespace {

Value generator(std::vector<Value> items) {
  return Value::sequence(SequenceType::kGenerator, std::move(items));
}

Value in_lower_case(Value value) {
  const Text* text = value.as_text();
  return text == nullptr ? value : Value(lower(*text));
}

/// The key that items are sorted or grouped by.
std::function<Value(const Value&)> key_of(const Bound& bound, std::size_t attribute,
                                          std::size_t case_sensitive) {
  const Value path = bound.value(attribute, None{});
  const bool folds = !bound.flag(case_sensitive, false);
  return [path, folds](const Value& item) {
    Value key = path.is_none() ? item : item_at(item, path);
    return folds ? in_lower_case(std::move(key)) : key;
  };
}

/// Several paths, of which `sort` makes one key.
Value keys_at(const Value& item, const Value& paths, bool folds) {
  std::vector<Value> keys;
  const Text* text = paths.as_text();
  const Text comma(",");
  for (const Text& path : text != nullptr ? split(*text, &comma, -1) : std::vector<Text>{Text()}) {
    Value key = paths.is_none() ? item : item_at(item, text != nullptr ? Value(path) : paths);
    keys.push_back(folds ? in_lower_case(std::move(key)) : std::move(key));
  }
  return Value::list(std::move(keys));
}

std::vector<Value> sorted(std::vector<Value> items, const std::function<Value(const Value&)>& key,
                          bool is_reverse) {
  std::vector<std::pair<Value, Value>> keyed;
  keyed.reserve(items.size());
  for (Value& item : items) {
    Value of_item = key(item);
    keyed.emplace_back(std::move(of_item), std::move(item));
  }
  std::stable_sort(keyed.begin(), keyed.end(), [&](const auto& a, const auto& b) {
    return is_reverse ? less(b.first, a.first) : less(a.first, b.first);
  });
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = std::move(keyed[i].second);
  return items;
}

Value sort(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'sort'", arguments, {"reverse", "case_sensitive", "attribute"});
  const Value paths = bound.value(2, None{});
  const bool folds = !bound.flag(1, false);
  return Value::list(sorted(
      items_of(value), [&](const Value& item) { return keys_at(item, paths, folds); },
      bound.flag(0, false)));
}

Value dict_sort(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'dictsort'", arguments, {"case_sensitive", "by", "reverse"});
  const std::string by = bound.has(1) ? bound.text(1).bytes() : "key";
  if (by != "key" && by != "value") {
    throw Failure(fmt::format("expected 'dictsort' by key or value, got '{}'", by));
  }
  const Dict* dict = value.as_dict();
  if (dict == nullptr) {
    if (value.is_undefined()) throw Failure(value.undefined_message());
    throw Failure(fmt::format("expected a mapping for 'dictsort', got {}", value.type_name()));
  }
  std::vector<Value> items;
  for (const auto& [key, item] : dict->items()) items.push_back(Value::tuple({key, item}));
  const bool folds = !bound.flag(0, false);
  return Value::list(sorted(
      std::move(items),
      [&](const Value& item) {
        const Value& part = item.as_sequence()->items[by == "key" ? 0 : 1];
        return folds ? in_lower_case(part) : part;
      },
      bound.flag(2, false)));
}

Value unique(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'unique'", arguments, {"case_sensitive", "attribute"});
  const auto key = key_of(bound, 1, 0);
  std::vector<Value> keys, result;
  for (Value& item : items_of(value)) {
    Value of_item = key(item);
    check_hashable(of_item);
    const auto is_it = [&](const Value& known) { return equal(known, of_item); };
    if (std::any_of(keys.begin(), keys.end(), is_it)) continue;
    keys.push_back(std::move(of_item));
    result.push_back(std::move(item));
  }
  return generator(std::move(result));
}

template <bool kIsMax>
Value extreme(const Value& value, const Arguments& arguments) {
  const Bound bound(kIsMax ? "the filter 'max'" : "the filter 'min'", arguments,
                    {"case_sensitive", "attribute"});
  const auto key = key_of(bound, 1, 0);
  std::optional<Value> best, best_key;
  for (Value& item : items_of(value)) {
    Value of_item = key(item);
    const bool is_better = !best || (kIsMax ? less(*best_key, of_item) : less(of_item, *best_key));
    if (!is_better) continue;
    best_key = std::move(of_item);
    best = std::move(item);
  }
  return best ? *best : Value::undefined("expected an item at least, got an empty sequence");
}

Value group_by(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'groupby'", arguments, {"attribute", "default", "case_sensitive"},
                    1);
  const Value path = bound.value(0), otherwise = bound.value(1, None{});
  const bool folds = !bound.flag(2, false);
  const auto plain_key = [&](const Value& item) {
    Value key = item_at(item, path);
    return key.is_undefined() && !otherwise.is_none() ? otherwise : key;
  };
  const auto key = [&](const Value& item) {
    return folds ? in_lower_case(plain_key(item)) : plain_key(item);
  };
  std::vector<Value> groups, members;
  std::optional<Value> current;
  const auto close = [&] {
    if (members.empty()) return;
    const Value name = folds ? plain_key(members.front()) : *current;
    groups.push_back(
        Value::sequence(SequenceType::kGroup, {name, Value::list(std::move(members))}));
    members.clear();
  };
  for (Value& item : sorted(items_of(value), key, false)) {
    Value of_item = key(item);
    if (current && !equal(*current, of_item)) close();
    current = std::move(of_item);
    members.push_back(std::move(item));
  }
  close();
  return Value::list(std::move(groups));
}

Value sum(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'sum'", arguments, {"attribute", "start"});
  const Value path = bound.value(0, None{});
  Value total = bound.value(1, Value(std::int64_t{0}));
  if (total.is_text()) throw Failure("expected numbers or lists to add up, got a text");
  for (const Value& item : items_of(value)) {
    total = apply(BinaryOperator::kAdd, total, path.is_none() ? item : item_at(item, path));
  }
  return total;
}

Value join_filter(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'join'", arguments, {"d", "attribute"});
  const Value path = bound.value(1, None{});
  std::vector<Text> texts;
  for (const Value& item : items_of(value)) {
    texts.push_back(displayed(path.is_none() ? item : item_at(item, path)));
  }
  return Value(join(displayed(bound.value(0)), texts));
}

Value first(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'first'", arguments, {});
  const Value none = Value::undefined("expected a first item, got an empty sequence");
  if (Sequence* sequence = value.as_sequence()) {
    if (sequence->used_up || sequence->items.empty()) return none;
    const Value item = sequence->items.front();
    if (sequence->type == SequenceType::kGenerator) sequence->items.erase(sequence->items.begin());
    return item;
  }
  if (const Text* text = value.as_text(); text != nullptr && !text->empty()) {
    return slice_of(value, None{}, Value(std::int64_t{1}), None{});
  }
  const std::vector<Value> items = items_of(value);
  return items.empty() ? none : items.front();
}

Value last(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'last'", arguments, {});
  if (value.is_a(SequenceType::kGenerator)) {
    throw Failure("expected a list for 'last', got a generator; the filter 'list' makes one of it");
  }
  if (const Text* text = value.as_text(); text != nullptr && !text->empty()) {
    return slice_of(value, Value(std::int64_t{-1}), None{}, None{});
  }
  const std::vector<Value> items = items_of(value);
  return items.empty() ? Value::undefined("expected a last item, got an empty sequence")
                       : items.back();
}

Value length(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'length'", arguments, {});
  return Value(length_of(value));
}

Value to_list(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'list'", arguments, {});
  return Value::list(items_of(value));
}

Value items(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'items'", arguments, {});
  if (value.is_undefined()) return generator({});
  const Dict* dict = value.as_dict();
  if (dict == nullptr) {
    throw Failure(fmt::format("expected a mapping for 'items', got {}", value.type_name()));
  }
  std::vector<Value> pairs;
  for (const auto& [key, item] : dict->items()) pairs.push_back(Value::tuple({key, item}));
  return generator(std::move(pairs));
}

Value reverse(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'reverse'", arguments, {});
  if (const Text* text = value.as_text()) return Value(reversed(*text));
  const bool is_generator = value.is_a(SequenceType::kGenerator);
  std::vector<Value> items = items_of(value);
  std::reverse(items.begin(), items.end());
  return is_generator ? Value::list(std::move(items)) : generator(std::move(items));
}

std::size_t count_of(const Bound& bound, std::string_view what) {
  const std::int64_t count = bound.integer(0, 0);
  if (count < 1) throw Failure(fmt::format("expected at least 1 as {}, got {}", what, count));
  return static_cast<std::size_t>(count);
}

Value batch(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'batch'", arguments, {"linecount", "fill_with"}, 1);
  const std::size_t count = count_of(bound, "the items of a batch");
  const Value fill = bound.value(1, None{});
  std::vector<Value> batches, current;
  for (Value& item : items_of(value)) {
    if (current.size() == count) batches.push_back(Value::list(std::exchange(current, {})));
    current.push_back(std::move(item));
  }
  if (!current.empty()) {
    while (!fill.is_none() && current.size() < count) {
      spend(1);
      current.push_back(fill);
    }
    batches.push_back(Value::list(std::move(current)));
  }
  return generator(std::move(batches));
}

Value slice(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'slice'", arguments, {"slices", "fill_with"}, 1);
  const std::size_t count = count_of(bound, "the slices");
  const Value fill = bound.value(1, None{});
  const std::vector<Value> all = items_of(value);
  const std::size_t usual = all.size() / count, longer = all.size() % count;
  std::vector<Value> slices;
  auto begin = all.begin();
  for (std::size_t i = 0; i < count; ++i) {
    spend(1);
    const auto end = begin + static_cast<std::ptrdiff_t>(usual + (i < longer ? 1 : 0));
    std::vector<Value> part(begin, end);
    if (!fill.is_none() && i >= longer) part.push_back(fill);
    slices.push_back(Value::list(std::move(part)));
    begin = end;
  }
  return generator(std::move(slices));
}

Value or_default(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'default'", arguments, {"default_value", "boolean"});
  const bool replaces = value.is_undefined() || (bound.flag(1, false) && !is_true(value));
  return replaces ? bound.value(0, Value("")) : value;
}

Value attribute(const Value& value, const Arguments& arguments) {
  const Bound bound("the filter 'attr'", arguments, {"name"}, 1);
  const std::string& name = bound.text(0).bytes();
  const auto found = own_attribute(value, name);
  return found ? *found
               : Value::undefined(fmt::format("expected an attribute '{}' of {}, got none", name,
                                              value.type_name()));
}

// --- Filters and tests of each item

Filter filter_named(const Value& name) {
  const Text* text = name.as_text();
  const Filter filter = text == nullptr ? nullptr : find_filter(text->view());
  if (filter == nullptr) {
    throw Failure(
        fmt::format("expected the name of a filter known here, got {}", represented(name).bytes()));
  }
  return filter;
}

/// Returns the arguments without the first ones, which say what to call.
Arguments rest_of(const Arguments& arguments, std::size_t taken) {
  Arguments rest = arguments;
  rest.values.erase(rest.values.begin(), rest.values.begin() + static_cast<std::ptrdiff_t>(taken));
  return rest;
}

Value map(const Value& value, const Arguments& arguments) {
  std::vector<Value> result;
  if (!is_true(value)) return generator({});
  if (!arguments.values.empty()) {
    const Filter filter = filter_named(arguments.values.front());
    const Arguments rest = rest_of(arguments, 1);
    for (const Value& item : items_of(value)) result.push_back(filter(item, rest));
    return generator(std::move(result));
  }
  const Bound bound("the filter 'map'", arguments, {"attribute", "default"}, 1);
  const Value otherwise = bound.value(1, None{});
  for (const Value& item : items_of(value)) {
    Value found = item_at(item, bound.value(0));
    result.push_back(found.is_undefined() && !otherwise.is_none() ? otherwise : std::move(found));
  }
  return generator(std::move(result));
}

template <bool kKeeps, bool kOfAttribute>
Value select(const Value& value, const Arguments& arguments) {
  if (!is_true(value)) return generator({});
  constexpr std::size_t kTest = kOfAttribute ? 1 : 0;
  if (kOfAttribute && arguments.values.empty()) {
    throw Failure("expected the name of an attribute to select by, got none");
  }
  Test test = nullptr;
  Arguments rest;
  if (arguments.values.size() > kTest) {
    const Text* name = arguments.values[kTest].as_text();
    test = name == nullptr ? nullptr : find_test(name->view());
    if (test == nullptr) {
      throw Failure(fmt::format("expected the name of a test known here, got {}",
                                represented(arguments.values[kTest]).bytes()));
    }
    rest = rest_of(arguments, kTest + 1);
  }
  std::vector<Value> result;
  for (Value& item : items_of(value)) {
    const Value tested = kOfAttribute ? item_at(item, arguments.values.front()) : item;
    const bool holds = test == nullptr ? is_true(tested) : test(tested, rest);
    if (holds == kKeeps) result.push_back(std::move(item));
  }
  return generator(std::move(result));
}

constexpr auto kListFilters = std::to_array<FilterEntry>({
    {"attr", attribute},
    {"batch", batch},
    {"count", length},
    {"d", or_default},
    {"default", or_default},
    {"dictsort", dict_sort},
    {"first", first},
    {"groupby", group_by},
    {"items", items},
    {"join", join_filter},
    {"last", last},
    {"length", length},
    {"list", to_list},
    {"map", map},
    {"max", extreme<true>},
    {"min", extreme<false>},
    {"reject", select<false, false>},
    {"rejectattr", select<false, true>},
    {"reverse", reverse},
    {"select", select<true, false>},
    {"selectattr", select<true, true>},
    {"slice", slice},
    {"sort", sort},
    {"sum", sum},
    {"unique", unique},
});

// Further filters of jinja2.
constexpr std::array<std::string_view, 9> kOtherFilters{
    "filesizeformat", "forceescape", "pprint",   "random", "striptags",
    "urlencode",      "urlize",      "wordwrap", "xmlattr"};

}  // namespace

Value item_at(const Value& value, const Value& path) {
  const Text* text = path.as_text();
  if (text == nullptr) return path.is_none() ? value : item_of(value, path);
  const Text dot(".");
  Value item = value;
  for (const Text& part : split(*text, &dot, -1)) {
    const bool is_number = is_of(part, CharacterClass::kDigit) && part.size() < 10;
    item = item_of(item, is_number ? Value(std::int64_t{std::stoi(part.bytes())}) : Value(part));
  }
  return item;
}

Filter find_list_filter(std::string_view name) { return find_in(kListFilters, name); }

Filter find_filter(std::string_view name) {
  const Filter filter = find_text_filter(name);
  return filter != nullptr ? filter : find_list_filter(name);
}

bool is_filter_of_jinja(std::string_view name) {
  return find_filter(name) != nullptr ||
         std::find(kOtherFilters.begin(), kOtherFilters.end(), name) != kOtherFilters.end();
}

}  // namespace prefopt::jinja
