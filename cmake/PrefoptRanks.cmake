# SPDX-License-Identifier: Apache-2.0
# Whether LibTorch's Gloo runs behind prefopt's declarations (src/dist/gloo_abi). A build without it
# trains in one process, so nothing in here is an error.

# Makes prefopt_libtorch_cpu, LibTorch without its CUDA libraries: a machine that compiles for a GPU
# need not have all that those need to run.
function(prefopt_add_libtorch_cpu)
  add_library(prefopt_libtorch_cpu INTERFACE IMPORTED)
  foreach(property INTERFACE_INCLUDE_DIRECTORIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES
      INTERFACE_COMPILE_DEFINITIONS INTERFACE_COMPILE_OPTIONS INTERFACE_LINK_LIBRARIES)
    get_target_property(value prefopt::libtorch ${property})
    if(property STREQUAL "INTERFACE_LINK_LIBRARIES")
      list(FILTER value INCLUDE REGEX "libtorch_cpu|libc10\\.|gomp|omp")
    endif()
    if(value)
      set_property(TARGET prefopt_libtorch_cpu PROPERTY ${property} "${value}")
    endif()
  endforeach()
endfunction()

# Sets PREFOPT_WITH_RANKS, and PREFOPT_WITH_NCCL where the headers of NCCL are there too.
function(prefopt_find_ranks)
  if(NOT DEFINED PREFOPT_GLOO_RUNS)
    message(STATUS "prefopt: trying Gloo")
    prefopt_add_libtorch_cpu()
    # A fault of a class layout shows only when it runs.
    try_run(PREFOPT_GLOO_RUNS compiles
      "${PROJECT_BINARY_DIR}/gloo" "${PROJECT_SOURCE_DIR}/cmake/gloo_check.cpp"
      CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/src/dist/gloo_abi"
      LINK_LIBRARIES prefopt_libtorch_cpu
      CXX_STANDARD 20
      COMPILE_OUTPUT_VARIABLE compile_output
      RUN_OUTPUT_VARIABLE run_output)
    if(NOT compiles)
      message(STATUS "prefopt: Gloo does not compile: ${compile_output}")
    endif()
  endif()
  set(PREFOPT_WITH_RANKS OFF PARENT_SCOPE)
  if(NOT PREFOPT_GLOO_RUNS STREQUAL "0")
    message(STATUS "prefopt: without ranks: the Gloo of this LibTorch does not run (${run_output})")
    return()
  endif()
  set(PREFOPT_WITH_RANKS ON PARENT_SCOPE)
  set(PREFOPT_WITH_NCCL OFF PARENT_SCOPE)
  if(NOT PREFOPT_WITH_CUDA)
    return()
  endif()
  get_filename_component(site "${PREFOPT_LIBTORCH_DIR}/../../../.." ABSOLUTE)
  find_path(PREFOPT_NCCL_INCLUDE_DIR nccl.h
    HINTS "${site}/nvidia/nccl/include" ${CUDAToolkit_INCLUDE_DIRS})
  if(PREFOPT_NCCL_INCLUDE_DIR)
    set(PREFOPT_WITH_NCCL ON PARENT_SCOPE)
  else()
    message(STATUS "prefopt: without NCCL: no nccl.h (PREFOPT_NCCL_INCLUDE_DIR), ranks use Gloo")
  endif()
endfunction()
