// SPDX-License-Identifier: Apache-2.0
#include "jinja/objects.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "jinja/arguments.h"
#include "jinja/budget.h"
#include "jinja/display.h"
#include "jinja/failure.h"
#include "jinja/operators.h"

namespace prefopt::jinja {
namespace {

/// The pairs that Python's dict(…) makes of its arguments.
std::vector<std::pair<Value, Value>> pairs_of(const Arguments& arguments) {
  if (arguments.values.size() > 1)
    throw Failure("expected one mapping at most, got several values");
  std::vector<std::pair<Value, Value>> pairs;
  if (!arguments.values.empty()) {
    const Value& given = arguments.values.front();
    if (const Dict* dict = given.as_dict()) {
      pairs = dict->items();
    } else {
      for (const Value& pair : items_of(given)) {
        const std::vector<Value> parts = items_of(pair);
        if (parts.size() != 2) {
          throw Failure(
              fmt::format("expected pairs of a key and a value, got {} values", parts.size()));
        }
        pairs.emplace_back(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) pairs.emplace_back(Value(name), value);
  return pairs;
}

class DictFunction final : public Object {
 public:
  std::string_view type_name() const override { return "dict"; }
  bool is_callable() const override { return true; }
  Value call(const Arguments& arguments) override { return Value::dict(pairs_of(arguments)); }
};

/// A separator between the parts of a text, none before the first.
class Joiner final : public Object {
 public:
  explicit Joiner(Value separator) : separator_(std::move(separator)) {}
  std::string_view type_name() const override { return "Joiner"; }
  bool is_callable() const override { return true; }
  std::size_t depth() const override { return separator_.depth() + 1; }
  Value call(const Arguments& arguments) override {
    const Bound bound("a joiner", arguments, {});
    return std::exchange(is_used_, true) ? separator_ : Value("");
  }

 private:
  Value separator_;
  bool is_used_ = false;
};

/// Values in turn.
class Cycler final : public Object, public std::enable_shared_from_this<Cycler> {
 public:
  explicit Cycler(Value values) : values_(std::move(values)) {}
  std::string_view type_name() const override { return "Cycler"; }
  std::size_t depth() const override { return values_.depth() + 1; }

  std::optional<Value> attribute(std::string_view name) override {
    if (name == "current") return present();
    if (name != "next" && name != "reset") return std::nullopt;
    return function([self = shared_from_this(), advances = name == "next"](const Arguments& given) {
      const Bound bound("a cycler's function", given, {});
      const Value value = advances ? self->present() : Value(None{});
      self->at_ = advances ? self->at_ + 1 : 0;
      return value;
    });
  }

 private:
  Value present() const {
    const std::vector<Value>& items = values_.as_sequence()->items;
    return items[at_ % items.size()];
  }

  Value values_;  ///< a tuple
  std::size_t at_ = 0;
};

Value make_joiner(const Arguments& arguments) {
  const Value separator = Bound("joiner", arguments, {"sep"}).value(0, Value(", "));
  return Value(std::shared_ptr<Object>(std::make_shared<Joiner>(separator)));
}

Value make_cycler(const Arguments& arguments) {
  if (arguments.values.empty() || !arguments.named.empty()) {
    throw Failure("expected values for cycler, got none");
  }
  return Value(std::shared_ptr<Object>(std::make_shared<Cycler>(Value::tuple(arguments.values))));
}

Value make_range(const Arguments& arguments) {
  constexpr std::int64_t kMaxRange = 100'000;  // jinja2's
  if (arguments.values.empty()) throw Failure("expected the end of a range, got none");
  const bool has_start = arguments.values.size() > 1;
  const Bound bound("range", arguments, {"start", "stop", "step"}, has_start ? 2 : 1);
  const std::int64_t start = has_start ? bound.integer(0, 0) : 0;
  const std::int64_t stop = bound.integer(has_start ? 1 : 0, 0), step = bound.integer(2, 1);
  if (step == 0) throw Failure("expected a step of a range other than 0, got 0");
  std::vector<Value> items;
  __extension__ using Wide = __int128;
  for (Wide i = start; step > 0 ? i < stop : i > stop; i += step) {
    if (std::ssize(items) == kMaxRange) {
      throw Failure(
          fmt::format("expected a range of at most {} numbers, got a longer one", kMaxRange));
    }
    items.emplace_back(static_cast<std::int64_t>(i));
  }
  spend(items.size());
  return Value::sequence(SequenceType::kRange, std::move(items));
}

Value raise_exception(const Arguments& arguments) {
  const Bound bound("raise_exception", arguments, {"message"}, 1);
  throw Failure(fmt::format("expected a conversation that the template takes, got its error '{}'",
                            displayed(bound.value(0)).bytes()));
}

/// Python's strftime, of the fields that name no place or zone.
Value time_text(const std::tm& now, const Arguments& arguments) {
  const std::string format = Bound("strftime_now", arguments, {"format"}, 1).text(0).bytes();
  constexpr std::string_view kKnown = "aAbBdHIjmMpSyY%";
  std::string result;
  for (std::size_t at = 0; at < format.size(); ++at) {
    if (format[at] != '%') {
      result += format[at];
      continue;
    }
    const char field = ++at < format.size() ? format[at] : '\0';
    if (kKnown.find(field) == std::string_view::npos || field == '\0') {
      throw Failure(fmt::format("expected a field of strftime_now known here, got '%{}'", field));
    }
    std::array<char, 64> buffer{};
    const char one[] = {'%', field, '\0'};
    result.append(buffer.data(), std::strftime(buffer.data(), buffer.size(), one, &now));
  }
  return Value(std::string_view(result));
}

}  // namespace

Value function(Function::Call call) {
  return Value(std::shared_ptr<Object>(std::make_shared<Function>(std::move(call))));
}

Namespace::Namespace(const Arguments& arguments) {
  for (const auto& [key, value] : pairs_of(arguments)) {
    const Text* name = key.as_text();
    if (name == nullptr) {
      throw Failure(fmt::format("expected names for a namespace, got {}", key.type_name()));
    }
    set(name->view(), value);
  }
}

std::optional<Value> Namespace::attribute(std::string_view name) {
  for (const auto& [known, value] : attributes_) {
    if (known == name) return value;
  }
  return std::nullopt;
}

void Namespace::set(std::string_view name, Value value) {
  if (name.starts_with('_')) {
    throw Failure(fmt::format("expected names without an underscore first, got '{}'", name));
  }
  for (auto& [known, held] : attributes_) {
    if (known != name) continue;
    held = std::move(value);
    return;
  }
  attributes_.emplace_back(name, std::move(value));
}

std::vector<std::pair<std::string_view, Value>> global_functions(
    const std::tm& now, std::function<void(std::shared_ptr<Namespace>)> keep) {
  return {
      {"range", function(make_range)},
      {"dict", Value(std::shared_ptr<Object>(std::make_shared<DictFunction>()))},
      {"joiner", function(make_joiner)},
      {"cycler", function(make_cycler)},
      {"raise_exception", function(raise_exception)},
      {"strftime_now",
       function([now](const Arguments& arguments) { return time_text(now, arguments); })},
      {"namespace", function([keep = std::move(keep)](const Arguments& arguments) {
         auto made = std::make_shared<Namespace>(arguments);
         keep(made);
         return Value(std::shared_ptr<Object>(std::move(made)));
       })},
  };
}

}  // namespace prefopt::jinja
