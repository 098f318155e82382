// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "jinja/value.h"

namespace prefopt::jinja {

/// The variable `loop`. Items that a condition chooses are looked for one by one, as in jinja2: the
/// body of the loop may change what the condition reads.
class Loop final : public Object, public std::enable_shared_from_this<Loop> {
 public:
  using Condition = std::function<bool(const Value& item)>;
  using Recurse = std::function<Value(const Value& items)>;

  /// `condition` and `recurse` may be empty.
  Loop(Value items, std::size_t depth0, Condition condition, Recurse recurse);

  /// Moves to the next item; false after the last one.
  bool advance();
  const Value& item() const { return current_; }
  /// Lets go of what belongs to the render.
  void finish();

  std::string_view type_name() const override { return "LoopContext"; }
  std::optional<Value> attribute(std::string_view name) override;
  bool is_callable() const override { return true; }
  Value call(const Arguments& arguments) override;
  std::size_t depth() const override { return items_.depth() + 1; }

 private:
  std::optional<Value> find_next();
  const std::optional<Value>& peek();
  std::int64_t length();
  Value cycle(const Arguments& arguments) const;
  Value changed(const Arguments& arguments);

  Value items_;
  std::vector<Value> list_;
  std::size_t at_ = 0;  ///< of list_: the first item that was not looked at
  std::size_t depth0_;
  Condition condition_;
  Recurse recurse_;
  std::int64_t index0_ = -1;
  bool has_peeked_ = false;
  bool is_searching_ = false;  ///< the condition is being asked
  std::optional<Value> next_;
  Value current_, before_;
  std::optional<std::int64_t> length_;
  std::optional<Value> last_changed_;
};

}  // namespace prefopt::jinja
