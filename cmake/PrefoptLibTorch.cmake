# SPDX-License-Identifier: Apache-2.0
# How prefopt finds LibTorch: in its own build, and in projects that use an installed prefopt.

set(PREFOPT_LIBTORCH_MINIMUM 2.7)

# The folder of a package of the Python in use, without importing it; empty without one.
function(prefopt_python_package package result)
  set(${result} "" PARENT_SCOPE)
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    return()
  endif()
  execute_process(
    COMMAND "${python}" -c
      "import importlib.util as u; s = u.find_spec('${package}'); print(s.submodule_search_locations[0])"
    OUTPUT_VARIABLE folder OUTPUT_STRIP_TRAILING_WHITESPACE
    RESULT_VARIABLE status ERROR_QUIET)
  if(status EQUAL 0)
    set(${result} "${folder}" PARENT_SCOPE)
  endif()
endfunction()

# Adds to prefopt::libtorch what only a program that uses CUDA needs.
function(prefopt_add_libtorch_cuda)
  if(NOT TARGET torch_cuda OR NOT TARGET c10_cuda)
    message(FATAL_ERROR "prefopt: expected a LibTorch with CUDA for PREFOPT_WITH_CUDA, got one "
      "without in ${Torch_DIR}; set Torch_DIR to another one")
  endif()
  get_target_property(torch_cuda torch_cuda LOCATION)
  get_target_property(c10_cuda c10_cuda LOCATION)
  get_target_property(cudart CUDA::cudart LOCATION)
  # Nothing refers to torch_cuda either, but without it a tensor cannot be on a GPU.
  target_link_libraries(prefopt::libtorch INTERFACE
    "-Wl,--push-state,--no-as-needed,\"${torch_cuda}\",--pop-state" "${c10_cuda}" "${cudart}")
  target_include_directories(prefopt::libtorch SYSTEM INTERFACE ${CUDAToolkit_INCLUDE_DIRS})
endfunction()

# prefopt_find_libtorch([<prefix> <origin>])
# Makes prefopt::libtorch from the Torch that the user names (Torch_DIR, CMAKE_PREFIX_PATH), else the
# one of Python; or from the one in <prefix>, described as <origin>. Sets PREFOPT_LIBTORCH_VERSION
# (empty where none was found), PREFOPT_LIBTORCH_DIR (its Torch_DIR) and PREFOPT_LIBTORCH_ORIGIN.
#
# With PREFOPT_WITH_CUDA, which needs CUDA::cudart to be there, it has the CUDA libraries too.
#
# It is a function so that the variables of TorchConfig.cmake stay in here.
function(prefopt_find_libtorch)
  # With this target in place LibTorch's cuda.cmake returns at once. It would otherwise ask even a
  # CPU program for a CUDA toolkit, rewrite the global CUDA flags, and fail on CMake 3.25.1.
  if(NOT TARGET torch::cudart)
    add_library(torch::cudart INTERFACE IMPORTED)
    if(TARGET CUDA::cudart)
      target_link_libraries(torch::cudart INTERFACE CUDA::cudart)
    endif()
  endif()

  # TorchConfig.cmake warns where this is missing, which it is from every shared LibTorch.
  set(kineto_LIBRARY unused)

  if(ARGC GREATER 0)
    set(prefix "${ARGV0}")
    set(origin "${ARGV1}")
  else()
    find_package(Torch ${PREFOPT_LIBTORCH_MINIMUM} CONFIG QUIET)
    set(origin "Torch_DIR or CMAKE_PREFIX_PATH")
    if(NOT Torch_FOUND)
      if(Torch_CONSIDERED_VERSIONS)
        message(STATUS "prefopt: passing over LibTorch ${Torch_CONSIDERED_VERSIONS} "
          "(${Torch_CONSIDERED_CONFIGS}), ${PREFOPT_LIBTORCH_MINIMUM} or later is needed")
      endif()
      prefopt_python_package(torch prefix)
      set(origin "the Python in use")
    endif()
  endif()
  if(NOT Torch_FOUND AND prefix)
    find_package(Torch ${PREFOPT_LIBTORCH_MINIMUM} CONFIG QUIET PATHS "${prefix}" NO_DEFAULT_PATH)
    set(torch_dir "${Torch_DIR}")
    unset(Torch_DIR CACHE)  # holds what the user names, nothing else
    set(Torch_DIR "${torch_dir}")
  endif()
  if(NOT Torch_FOUND)
    set(PREFOPT_LIBTORCH_VERSION "" PARENT_SCOPE)
    return()
  endif()

  # Points at a folder of the machine that built the wheel.
  if(TARGET caffe2::mkl)
    set_property(TARGET caffe2::mkl PROPERTY INTERFACE_LINK_DIRECTORIES "")
  endif()

  # torch_cpu and c10 by file name, since Torch's own targets are not seen outside this directory.
  # The libraries carry an RPATH to the CUDA libraries that they need themselves.
  if(NOT TARGET prefopt::libtorch)
    add_library(prefopt::libtorch INTERFACE IMPORTED GLOBAL)
    get_target_property(torch_cpu torch_cpu LOCATION)
    get_target_property(c10 c10 LOCATION)
    get_target_property(definitions torch_cpu INTERFACE_COMPILE_DEFINITIONS)
    # Threads of LibTorch's own: a second OpenMP would start as many again.
    get_filename_component(torch_lib "${torch_cpu}" DIRECTORY)
    file(GLOB openmp "${torch_lib}/libgomp*.so*")
    if(NOT openmp AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      set(openmp gomp)
    endif()
    target_link_libraries(prefopt::libtorch INTERFACE "${torch_cpu}" "${c10}" ${openmp})
    target_include_directories(prefopt::libtorch SYSTEM INTERFACE ${TORCH_INCLUDE_DIRS})
    if(definitions)
      target_compile_definitions(prefopt::libtorch INTERFACE ${definitions})
    endif()
    if(PREFOPT_WITH_CUDA)
      prefopt_add_libtorch_cuda()
    endif()
    separate_arguments(flags UNIX_COMMAND "${TORCH_CXX_FLAGS}")
    target_compile_options(prefopt::libtorch INTERFACE ${flags})
  endif()
  set(PREFOPT_LIBTORCH_VERSION "${Torch_VERSION}" PARENT_SCOPE)
  set(PREFOPT_LIBTORCH_DIR "${Torch_DIR}" PARENT_SCOPE)
  set(PREFOPT_LIBTORCH_ORIGIN "${origin}" PARENT_SCOPE)
endfunction()
