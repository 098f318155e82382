// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/equal.h>
#include <ATen/ops/randn.h>

#include <filesystem>
#include <memory>

#include "core/activation_file.h"
#include "prefopt/error.h"
#include "support/catch.h"
#include "support/errors.h"
#include "support/temp_dir.h"

namespace prefopt::detail {

TEST_CASE("activation file: tensors come back as they were put", "[core]") {
  const testing_support::TempDir dir;
  auto file = std::make_shared<ActivationFile>(dir.path(), "folder");
  CHECK(std::filesystem::is_empty(dir.path()));  // it has no name
  const at::Tensor first = at::randn({300, 100}), second = at::randn({5}, at::kDouble);
  at::Tensor one = ActivationFile::put(file, first.t());
  const at::Tensor two = ActivationFile::put(file, second);
  const at::Tensor none = ActivationFile::put(file, at::randn({0, 4}));
  CHECK(at::equal(one, first.t()));
  CHECK(at::equal(two, second));
  CHECK(one.scalar_type() == at::kFloat);
  CHECK(two.scalar_type() == at::kDouble);
  CHECK(none.sizes() == at::IntArrayRef({0, 4}));
  // A part that is let go is taken again, and what else is there stays.
  one.reset();
  const at::Tensor third = at::randn({300, 100});
  const at::Tensor three = ActivationFile::put(file, third);
  file.reset();  // tensors keep it
  CHECK(at::equal(three, third));
  CHECK(at::equal(two, second));
}

TEST_CASE("activation file: a folder that is none", "[core]") {
  const testing_support::TempDir dir;
  CHECK_THROWS_TEXT(ActivationFile(dir.file("none"), "machine.activation_folder"), ConfigError,
                    "machine.activation_folder: expected a folder that files can be made in, got " +
                        dir.file("none") + ": No such file or directory");
}

}  // namespace prefopt::detail
