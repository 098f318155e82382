// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only way to Catch2 in these tests. c10's logging defines CHECK and LOG, so LibTorch comes
// first, gives both names up, and Catch2 (3 or 2.13) takes CHECK. Tensors, their functions and
// autograd are here; a test of modules or optimizers includes those headers itself (torch/torch.h
// would double the time of every test file).
#include <torch/csrc/autograd/autograd.h>
#include <torch/types.h>
#include <torch/utils.h>

#undef CHECK
#undef LOG

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
using Catch::Approx;  // where 2.13 has it
#else
#include <catch2/catch.hpp>
#endif
