# SPDX-License-Identifier: Apache-2.0
# Fetches LibTorch as the wheel `torch`, for machines that have none.

set(PREFOPT_LIBTORCH_WHEELS torch==2.11.0)
if(CMAKE_SYSTEM_NAME STREQUAL "Linux")
  # The only two libraries of CUDA that libtorch_cpu.so of this wheel loads.
  list(APPEND PREFOPT_LIBTORCH_WHEELS nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
endif()

# The command line that runs pip, in `result`. A Python without pip lends a virtual environment.
function(prefopt_find_pip result)
  find_program(python NAMES python3 python NO_CACHE)
  if(NOT python)
    message(FATAL_ERROR "prefopt: expected Python 3, to fetch LibTorch with pip, got none; install "
      "it, or set Torch_DIR to the share/cmake/Torch folder of a LibTorch")
  endif()
  execute_process(COMMAND "${python}" -m pip --version
    RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
  if(NOT status EQUAL 0)
    set(environment "${PREFOPT_DEPS_DIR}/pip")
    execute_process(COMMAND "${python}" -m venv "${environment}"
      RESULT_VARIABLE status OUTPUT_QUIET ERROR_QUIET)
    if(NOT status EQUAL 0)
      file(REMOVE_RECURSE "${environment}")
      message(FATAL_ERROR "prefopt: expected pip or venv in ${python}, to fetch LibTorch, got "
        "neither; install one (Debian: python3-pip), or set Torch_DIR to the share/cmake/Torch "
        "folder of a LibTorch")
    endif()
    set(python "${environment}/bin/python3")
  endif()
  set(${result} "${python}" -m pip PARENT_SCOPE)
endfunction()

# Puts the folder of the fetched package torch into `result`. What was fetched before is taken as it
# is; an interrupted fetch leaves nothing that could be taken for a whole one.
function(prefopt_fetch_libtorch result)
  list(GET PREFOPT_LIBTORCH_WHEELS 0 version)
  string(REPLACE "torch==" "" version "${version}")
  set(folder "${PREFOPT_DEPS_DIR}/libtorch-${version}")
  set(${result} "${folder}/torch" PARENT_SCOPE)

  file(MAKE_DIRECTORY "${PREFOPT_DEPS_DIR}")
  file(LOCK "${PREFOPT_DEPS_DIR}/libtorch.lock" GUARD FUNCTION)
  if(EXISTS "${folder}")
    return()
  endif()
  list(JOIN PREFOPT_LIBTORCH_WHEELS " " wheels)
  message(STATUS "prefopt: fetching LibTorch into ${folder} (1.2 GB: ${wheels})")
  prefopt_find_pip(pip)
  set(partial "${folder}.partial")
  file(REMOVE_RECURSE "${partial}")
  execute_process(
    COMMAND ${pip} install --quiet --no-input --disable-pip-version-check --no-deps
      --target "${partial}" ${PREFOPT_LIBTORCH_WHEELS}
    RESULT_VARIABLE status ERROR_VARIABLE error)
  if(NOT status EQUAL 0)
    file(REMOVE_RECURSE "${partial}")
    message(FATAL_ERROR "prefopt: pip could not fetch ${wheels}:\n${error}\n"
      "Set Torch_DIR to the share/cmake/Torch folder of a LibTorch instead.")
  endif()
  file(RENAME "${partial}" "${folder}")
endfunction()
